"""Random requests, locks, splits and evictions on the patched cache, checked after every step."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from fork_harness import ForkHarness, path_tokens
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=24)


class CacheLife(RuleBasedStateMachine):
    """Every operation that a scheduler does to the tree, in any order."""

    policy: ClassVar[int] = 2
    options: ClassVar[dict[str, object]] = {}

    locks = Bundle("locks")

    def __init__(self) -> None:
        super().__init__()
        self.harness = ForkHarness(self.policy, kv_tokens=96, state_slots=8, **self.options)
        self.held: list[Any] = []

    @rule(tokens=TOKENS)
    def insert(self, tokens: list[int]) -> None:
        self.harness.insert(tokens)

    @rule(tokens=TOKENS, more=st.lists(st.integers(0, 2), min_size=1, max_size=6))
    def continue_conversation(self, tokens: list[int], more: list[int]) -> None:
        if self.harness.insert(tokens):
            self.harness.insert(tokens + more)

    @rule(tokens=TOKENS)
    def match_and_split(self, tokens: list[int]) -> None:
        assert self.harness.hit(tokens) <= len(tokens)

    @rule(tokens=TOKENS)
    def aborted_request(self, tokens: list[int]) -> None:
        """Slots are taken, the request dies, nothing is inserted."""
        lock = self.harness.lock_prefix(tokens)
        state, kv = self.harness.alloc_state(), self.harness.alloc_kv(len(tokens))
        self.harness.unlock(lock)
        if state is not None:
            self.harness.free_state(state)
        if kv is not None:
            self.harness.allocator.free(kv)

    @rule(target=locks, tokens=TOKENS)
    def lock(self, tokens: list[int]):
        found = self.harness.match(tokens)
        if found.device_prefix_len == 0 or len(self.held) >= 3:
            return multiple()
        lock = self.harness.lock(found.last_device_node)
        self.held.append(lock)
        return lock

    @rule(lock=consumes(locks))
    def unlock(self, lock: Any) -> None:
        self.held.remove(lock)
        self.harness.unlock(lock)

    @rule(tokens=st.integers(1, 40))
    def evict_kv(self, tokens: int) -> None:
        cache = self.harness.cache
        unlocked, free = cache.full_evictable_size(), self.harness.allocator.available_size()
        cache.evict(tokens)
        freed = self.harness.allocator.available_size() - free
        assert freed == unlocked - cache.full_evictable_size()
        assert freed >= min(tokens, unlocked), "no progress while unlocked KV exists"

    @rule(count=st.integers(1, 4))
    def evict_states(self, count: int) -> None:
        cache = self.harness.cache
        unlocked, free = cache.mamba_evictable_size(), self.harness.requests.mamba_pool
        before = free.available_size()
        cache.evict_mamba(count)
        freed = free.available_size() - before
        assert freed >= min(count, unlocked), "no progress while an unlocked state exists"

    @rule()
    def flush(self) -> None:
        if not self.held:
            self.harness.requests.mamba_pool.clear()
            self.harness.allocator.clear()
            self.harness.cache.reset()

    @invariant()
    def slots_and_view_are_sound(self) -> None:
        self.harness.check()
        assert not self.harness.cache.stats.fallbacks

    @invariant()
    def what_is_locked_is_cached(self) -> None:
        nodes = {id(node) for node in self.harness.nodes()}
        for node in self.held:
            assert node.mamba_value is not None, "a locked state was evicted"
            assert self._whole(node, nodes), f"locked KV was evicted: {path_tokens(node)}"

    def _whole(self, node: Any, nodes: set[int]) -> bool:
        while node.parent is not None:
            if id(node) not in nodes:
                return False
            node = node.parent
        return node is self.harness.cache.root_node


VARIANTS = {
    "lru": (1, {}),
    "marconi": (2, {}),
    "marconi_state_only": (2, {"marconi_evict_pools": "state"}),
    "marconi_parent": (2, {"marconi_savings": "parent"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_life(variant: str) -> None:
    policy, options = VARIANTS[variant]
    life = type("Life", (CacheLife,), {"policy": policy, "options": options})
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=120,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
