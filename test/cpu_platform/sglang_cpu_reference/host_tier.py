"""Copies between the pools and the host tier (HiCache) with plain indexing: both are memory here.

Of SGLang's layouts only `page_first_direct` is served, the one its host pool of recurrent states
takes together with `--hicache-io-backend direct`. A host pool is [pages, layers, page_size, ...],
a layer of a device pool is [slots, ...]; indices count slots on both sides.

A transfer takes several passes of the scheduler, as it may beside a device, and no clock. Until
then SGLang keeps its prefixes locked. A backup is copied at the end of them, so a slot that was
given away meanwhile shows as a wrong answer. A load is copied at once, for a forward waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

#: How often SGLang finds a transfer under way; it asks of the first of a queue once a pass.
PASSES = 3

_SUBMITTED: list[Callable[[], None]] = []


class TransferEvent:
    """Recorded at the end of a transfer: completes it when it was asked for, or is waited for."""

    def __init__(self) -> None:
        self._passes_left = 0
        self._copies: list[Callable[[], None]] = []

    def record(self, stream: object = None) -> None:
        self._passes_left = PASSES
        self._copies = [*_SUBMITTED]
        _SUBMITTED.clear()

    def query(self) -> bool:
        if self._passes_left:
            self._passes_left -= 1
            return False
        self.synchronize()
        return True

    def synchronize(self) -> None:
        self._passes_left = 0
        for copy in self._copies:
            copy()
        self._copies = []

    def wait(self, stream: object = None) -> None:
        self.synchronize()


def transfer_events() -> tuple[torch.cpu.Event, TransferEvent, bool]:
    """The events at a transfer's start and end, and whether they tell the time."""
    return torch.cpu.Event(), TransferEvent(), False


def unpinned_page(original: Callable[[Any], torch.Tensor]) -> Callable[[Any], torch.Tensor]:
    """A host pool's empty page for what is read from storage, in memory that needs no driver."""

    @wraps(original)
    def get_dummy_flat_data_page(self: Any) -> torch.Tensor:
        self.pin_memory = False
        return original(self)

    return get_dummy_flat_data_page


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
    """Copy all layers to the host pools, when the transfer ends.

    The layers of the first pool come first, and so on.
    """
    layers, rest = divmod(len(src_ptrs), len(dst_ptrs))
    if rest:
        raise ValueError(f"{len(src_ptrs)} layers do not divide among {len(dst_ptrs)} host pools")
    pages, offsets = _split(dst_indices, page_size)

    def copy() -> None:
        for i, device in enumerate(src_ptrs):
            host, layer = dst_ptrs[i // layers], i % layers
            host[pages, layer, offsets] = device[src_indices]

    _SUBMITTED.append(copy)


def _split(indices: torch.Tensor, page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return indices // page_size, indices % page_size
