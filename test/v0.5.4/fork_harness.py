"""A cache over CPU pools that records its victims and checks that no slot is lost or held twice."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import sglang.srt.mem_cache.mamba_radix_cache as upstream
import torch
from cpu_cache_v0_5_4 import EXAMPLE_COST as COST
from cpu_cache_v0_5_4 import CpuCache, path_tokens

__all__ = ["COST", "ForkHarness", "path_tokens"]

#: What takes something from a node, and what it takes.
REMOVALS = {
    "_tombstone_internal_node": "state",
    "_delete_leaf": "leaf",
    "_delete_tombstone_leaf": "kv",
}


class ForkHarness(CpuCache):
    """See :class:`CpuCache`; Marconi options are keywords.

    ``victims`` lists (what was taken, tokens of the path), in order.
    """

    def __init__(
        self,
        policy: int | None = None,
        *,
        kv_tokens: int = 512,
        state_slots: int = 16,
        **options: object,
    ) -> None:
        super().__init__(policy, kv_tokens, state_slots, COST, dict(options))
        # SGLang tells accesses apart by tenths of a millisecond, which is too slow for a test.
        upstream.time = SimpleNamespace(monotonic=map(float, itertools.count()).__next__)
        self.victims: list[tuple[str, tuple[int, ...]]] = []
        for name, taken in REMOVALS.items():
            self._record(name, taken)

    def lock_prefix(self, tokens: list[int]) -> Any:
        return self.lock(self.match(tokens).last_device_node)

    def nodes(self) -> list[Any]:
        root = self.cache.root_node
        return [node for node in self.cache._collect_all_nodes() if node is not root]

    def states(self) -> set[tuple[int, ...]]:
        """Paths at whose ends a state is cached."""
        return {path_tokens(node) for node in self.cache.mamba_lru_list.cache.values()}

    def check(self) -> None:
        """Every slot is free or held by one node, lists and sizes agree with the tree.

        SGLang's own ``sanity_check`` also compares the lists' order with times of access. A lookup
        that no insert follows makes these differ in stock too, so tests call it where none is.
        """
        cache, nodes = self.cache, self.nodes()
        stateful = [node for node in nodes if node.mamba_value is not None]
        kv = [slot for node in nodes for slot in node.value.tolist()]
        free = torch.cat([self.allocator.free_pages, self.allocator.release_pages]).tolist()
        assert sorted(kv + free) == list(range(1, self.kv_tokens + 1)), "KV slots"
        states = [int(node.mamba_value) for node in stateful]
        free = self.requests.mamba_pool.free_slots.tolist()
        assert sorted(states + free) == list(range(self.state_slots)), "state slots"

        assert set(cache.full_lru_list.cache) == {node.id for node in nodes}
        assert set(cache.mamba_lru_list.cache) == {node.id for node in stateful}
        unlocked = [node for node in nodes if not node.full_lock_ref]
        assert cache.full_evictable_size() == sum(len(node.value) for node in unlocked)
        assert cache.full_lru_list_evictable_size() == cache.full_evictable_size()
        assert cache.mamba_lru_list_evictable_size() == cache.mamba_evictable_size()
        assert cache.mamba_evictable_size() == sum(not node.mamba_lock_ref for node in stateful)
        assert all(node.children or node.mamba_value is not None for node in nodes), "a dead leaf"
        view = getattr(cache, "view", None)
        if view is not None:
            assert cache.stats.errors == 0
            view._check()

    def _record(self, name: str, taken: str) -> None:
        original = getattr(self.cache, name)

        def recorded(node: Any) -> Any:
            self.victims.append((taken, path_tokens(node)))
            return original(node)

        setattr(self.cache, name, recorded)
