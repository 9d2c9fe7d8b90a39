"""No operation of ours reads device memory on the host more often than stock's does.

Slots are tensors on the device. Reading one waits for all work that is queued there, and a
scheduler that waits stalls every running request. On a CPU nothing waits, but every such read goes
through the same calls of PyTorch, which are counted here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from gpu.host_reads import reads_noted
from tree_harness import TreeHarness, random_life, sequence, server_context

OPERATIONS = (
    *("match_prefix", "insert", "evict", "evict_mamba", "evict_for_alloc", "touch_prefix"),
    *("inc_lock_ref", "dec_lock_ref", "marconi_state", "reset"),
)


class Reads:
    """Counts what is read while an operation of the cache runs."""

    def __init__(self) -> None:
        self.count = 0
        self._depth = 0

    def note(self) -> None:
        self.count += 1

    @contextmanager
    def counted(self) -> Iterator[None]:
        # An operation that another one calls is counted with that.
        if self._depth:
            yield
            return
        self._depth += 1
        try:
            with reads_noted(self.note):
                yield
        finally:
            self._depth -= 1


def watched(harness: TreeHarness) -> Reads:
    reads = Reads()
    for name in OPERATIONS:
        original = getattr(harness.cache, name, None)
        if original is None:
            continue

        def counted(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            with reads.counted():
                return original(*args, **kwargs)

        setattr(harness.cache, name, counted)
    return reads


def reads_of_a_life(policy: int | None, core: str, seed: int, **options: Any) -> int:
    harness = TreeHarness(policy, core=core, kv_tokens=160, state_slots=9, **options)
    reads = watched(harness)
    random_life(harness, seed, 250)
    return reads.count


def test_the_count_sees_every_way_to_read():
    slot = torch.tensor([3])
    for read in (int, bool, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy):
        reads = Reads()
        with reads.counted():
            read(slot)
        assert reads.count, read
    reads = Reads()
    with reads.counted():
        torch.cat([slot, slot])[1:].clone()
    assert not reads.count


VARIANTS = {
    "policy 1": (1, {}),
    "policy 2": (2, {}),
    "policy 2, state pool": (2, {"marconi_evict_pools": "state"}),
    "policy 3": (3, {}),
    "policy 3, judicious": (3, {"marconi_admission": "judicious"}),
}


@pytest.mark.parametrize("core", ["python", "rust"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_random_life_reads_what_stock_reads(variant: str, core: str):
    policy, options = VARIANTS[variant]
    with server_context():
        for seed in range(2):
            stock = reads_of_a_life(None, core, seed)
            assert stock == 0, "stock reads the device: compare its count life by life"
            assert reads_of_a_life(policy, core, seed, **options) == stock


@pytest.mark.parametrize("core", ["python", "rust"])
def test_a_decision_that_falls_back_to_lru_reads_nothing(core: str):
    with server_context():
        harness = TreeHarness(3, core=core, kv_tokens=160, state_slots=9)
        for first in range(6):
            harness.insert(sequence(8, first))
        reads = watched(harness)
        harness.cache.view.is_sound = False
        assert harness.cache.evict_mamba(4).mamba_num_evicted == 4
        assert harness.cache.evict(8).num_tokens_evicted >= 8
        assert harness.cache.stats.fallbacks.total() >= 2
        assert not reads.count
