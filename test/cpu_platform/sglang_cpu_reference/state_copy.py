"""Copies recurrent states to their snapshot slots while decoding, for `extra_buffer`."""

from __future__ import annotations

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
