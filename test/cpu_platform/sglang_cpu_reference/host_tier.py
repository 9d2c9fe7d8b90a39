"""Copies between the pools and the host tier (HiCache) with plain indexing: both are memory here.

Of SGLang's layouts only `page_first_direct` is served, the one its host pool of recurrent states
takes together with `--hicache-io-backend direct`. A host pool is [pages, layers, page_size, ...],
a layer of a device pool is [slots, ...]; indices count slots on both sides. The copies are done
when a function returns, which is what the events of `torch.cpu` report.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def register_host_memory(
    buffer: torch.Tensor, registration_granularity_bytes: int | None = None
) -> None:
    """Pinning is for a device's copy engine, and there is none."""


def load_layer(
    src_ptrs: Sequence[torch.Tensor],
    dst_ptrs: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    layer_id: int,
    page_size: int,
) -> None:
    """Copy one layer out of each host pool into the device pool beside it."""
    pages, offsets = _split(src_indices, page_size)
    for host, device in zip(src_ptrs, dst_ptrs, strict=True):
        device[dst_indices] = host[pages, layer_id, offsets]


def back_up_all_layers(
    src_ptrs: Sequence[torch.Tensor],
    dst_ptrs: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copy all layers to the host pools; the layers of the first pool come first, and so on."""
    layers, rest = divmod(len(src_ptrs), len(dst_ptrs))
    if rest:
        raise ValueError(f"{len(src_ptrs)} layers do not divide among {len(dst_ptrs)} host pools")
    pages, offsets = _split(dst_indices, page_size)
    for i, device in enumerate(src_ptrs):
        host, layer = dst_ptrs[i // layers], i % layers
        host[pages, layer, offsets] = device[src_indices]


def _split(indices: torch.Tensor, page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return indices // page_size, indices % page_size
