"""The shadow of a server whose KV and states come from one budget of bytes."""

from __future__ import annotations

from dataclasses import replace

from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import (
    ShadowCache,
    ShadowShape,
    _OutOfMemory,
)


class ElasticShadowCache(ShadowCache):
    """Memory is short when what KV blocks and state slots take together exceeds the budget.

    Blocks and slots are taken and given back whole; what a real allocator loses to fragments
    between compactions is not modelled. The policy must be one that chooses between both pools,
    for it is asked for one victim of either kind.

    Args:
        shape: its pools are ignored.
        cost: of the model; bytes of KV a token and of a state.
        budget: bytes of both pools together.
    """

    def __init__(
        self, shape: ShadowShape, policy: EvictionPolicy, cost: CostModel, budget: float
    ) -> None:
        self.budget = budget
        self.block_bytes = cost.kv_bytes_per_token * shape.block_tokens
        self.state_bytes = cost.state_bytes
        blocks, slots = int(budget / self.block_bytes), int(budget / self.state_bytes)
        super().__init__(replace(shape, kv_blocks=blocks, state_slots=slots), policy)

    @property
    def free_bytes(self) -> float:
        """What neither KV nor states take."""
        kv = (self.shape.kv_blocks - self.kv_free) * self.block_bytes
        states = (self.shape.state_slots - self.states_free) * self.state_bytes
        return self.budget - kv - states

    def _holds(self, kv: int, states: int) -> bool:
        return kv * self.block_bytes + states * self.state_bytes <= self.budget

    def _take_kv(self, blocks: int) -> None:
        self._make_room(blocks * self.block_bytes)
        self.kv_free -= blocks

    def _take_state(self) -> None:
        self._make_room(self.state_bytes)
        self.states_free -= 1

    def _make_room(self, wanted: float) -> None:
        if self.free_bytes >= wanted:
            return
        self.tree.tick()
        while self.free_bytes < wanted:
            victim = self.tree.victim(Pool.STATE)
            if victim is None:
                raise _OutOfMemory
            self._evict(Pool.STATE, victim)
