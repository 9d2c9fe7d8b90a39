"""Copies recurrent states: to snapshot slots for `extra_buffer`, and from accepted drafts."""

from __future__ import annotations

from typing import Any

import torch


def track_mamba_states_if_needed(
    conv_states: torch.Tensor,
    ssm_states: torch.Tensor,
    cache_indices: torch.Tensor,
    mamba_track_mask: torch.Tensor,
    mamba_track_indices: torch.Tensor,
    batch_size: int,
    check_freed_slots: bool = False,
) -> None:
    """Copy one layer's states of the marked rows; pools are [slots, ...], the rest [B]."""
    rows = mamba_track_mask[:batch_size].nonzero(as_tuple=True)[0]
    if rows.numel() == 0:
        return
    source, target = _slots(cache_indices, mamba_track_indices, rows, check_freed_slots)
    conv_states[target] = conv_states[source]
    ssm_states[target] = ssm_states[source]


def track_mamba_states_all_layers(
    conv_states_pool: torch.Tensor,
    ssm_states_pool: torch.Tensor,
    cache_indices: torch.Tensor,
    mamba_track_mask: torch.Tensor,
    mamba_track_indices: torch.Tensor,
    batch_size: int,
    check_freed_slots: bool = False,
) -> None:
    """The same for every layer at once; pools are [layers, slots, ...]."""
    rows = mamba_track_mask[:batch_size].nonzero(as_tuple=True)[0]
    if rows.numel() == 0:
        return
    source, target = _slots(cache_indices, mamba_track_indices, rows, check_freed_slots)
    conv_states_pool[:, target] = conv_states_pool[:, source]
    ssm_states_pool[:, target] = ssm_states_pool[:, source]


def _slots(
    cache_indices: torch.Tensor,
    mamba_track_indices: torch.Tensor,
    rows: torch.Tensor,
    check_freed_slots: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    source, target = cache_indices[rows].long(), mamba_track_indices[rows].long()
    if check_freed_slots:
        # The unified memory pool marks a slot freed meanwhile by a negative number.
        alive = (source >= 0) & (target >= 0)
        source, target = source[alive], target[alive]
    return source, target


def scatter_mamba_states_after_mtp_verify(
    mamba_caches: Any,
    state_indices_tensor: torch.Tensor,
    last_correct_step_indices: torch.Tensor,
    mamba_track_indices: torch.Tensor | None,
    mamba_steps_to_track: torch.Tensor | None,
    src_indices_raw: torch.Tensor | None = None,
) -> None:
    """Make the state after the last accepted draft the request's own, and take its snapshot.

    ``mamba_caches`` has pools [layers, slots, ...] and what verification kept of each draft
    [layers, rows, drafts, ...]; the rest [B]. A draft of -1 copies nothing, nor a negative slot.
    """
    rows = src_indices_raw
    if rows is None:
        rows = torch.arange(len(last_correct_step_indices))
    pairs = [(mamba_caches.temporal, mamba_caches.intermediate_ssm)]
    pairs += zip(mamba_caches.conv, mamba_caches.intermediate_conv_window, strict=True)
    for pool, kept in pairs:
        if pool.numel() == 0:
            continue
        _accept(pool, kept, state_indices_tensor, last_correct_step_indices, rows)
        if mamba_track_indices is not None and mamba_steps_to_track is not None:
            _accept(pool, kept, mamba_track_indices, mamba_steps_to_track, rows)


def _accept(
    pool: torch.Tensor,
    kept: torch.Tensor,
    slots: torch.Tensor,
    drafts: torch.Tensor,
    rows: torch.Tensor,
) -> None:
    wanted = (drafts >= 0) & (slots >= 0)
    slots, drafts, rows = slots[wanted].long(), drafts[wanted].long(), rows[wanted].long()
    pool[:, slots] = kept[:, rows, drafts].to(pool.dtype)
