"""A random life of the real cache: no slot lost or freed twice, locks respected, progress made."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.marconi.eviction.policy import HintObserver, orders_shared_memory
from sglang.srt.mem_cache.marconi.hints import Hint
from tree_harness import (
    FULL,
    MAMBA,
    TreeHarness,
    live,
    path_tokens,
    radix_key,
    server_context,
    waiting_request,
)

KV_TOKENS, STATE_SLOTS = 96, 8
#: Where both share their bytes, a state weighs as much as 8 tokens: all memory holds 160.
SHARED_COST = ModelCost(a=10**6, b=100, kv_bytes_per_token=16, state_bytes=128)
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=24)


class CacheLife(RuleBasedStateMachine):
    """Every operation that a scheduler does to the tree, in any order."""

    policy = 2
    options: ClassVar[dict[str, object]] = {}

    locks = Bundle("locks")

    def __init__(self) -> None:
        super().__init__()
        self.context = server_context()
        self.context.__enter__()
        self.harness = TreeHarness(
            self.policy, kv_tokens=KV_TOKENS, state_slots=STATE_SLOTS, **self.options
        )
        self.held: dict[int, tuple[int, ...]] = {}

    def teardown(self) -> None:
        self.context.__exit__(None, None, None)

    @rule(tokens=TOKENS)
    def insert(self, tokens: list[int]) -> None:
        self.harness.insert(tokens)

    @rule(tokens=TOKENS, more=st.lists(st.integers(0, 2), min_size=1, max_size=6))
    def continue_conversation(self, tokens: list[int], more: list[int]) -> None:
        if self.harness.insert(tokens):
            self.harness.insert(tokens + more)

    @rule(tokens=TOKENS)
    def match_and_split(self, tokens: list[int]) -> None:
        hit = self.harness.hit(tokens)
        assert hit <= len(tokens)

    @rule(queue=st.lists(TOKENS, max_size=4), matched=st.booleans())
    def requests_wait(self, queue: list[list[int]], matched: bool) -> None:
        requests = [waiting_request(tokens) for tokens in queue]
        for request, tokens in zip(requests, queue, strict=True):
            if matched:
                request.best_match_node = self.harness.look(tokens).best_match_node
        for _ in range(2):
            self.harness.cache.note_queue(requests, matched=matched)
        assert self.harness.cache.stats.errors == 0

    @rule(tokens=TOKENS, hint=st.sampled_from(list(Hint)))
    def request_says_what_follows(self, tokens: list[int], hint: Hint) -> None:
        policy = self.harness.cache.policy
        if isinstance(policy, HintObserver):
            policy.on_hint(self.harness.look(tokens).best_match_node, hint)

    @rule(tokens=TOKENS)
    def aborted_request(self, tokens: list[int]) -> None:
        """Slots are taken, the request dies, nothing is inserted."""
        lock = self.harness.lock(tokens)
        state, kv = self.harness.alloc_state(), self.harness.alloc_kv(len(tokens))
        self.harness.unlock(lock)
        if state is not None:
            self.harness.requests.mamba_allocator.free(state)
        if kv is not None:
            self.harness.allocator.free(kv)

    @rule(target=locks, tokens=TOKENS)
    def lock(self, tokens: list[int]):
        result = self.harness.match(tokens)
        if result.device_prefix_len == 0 or len(self.held) >= 3:
            return multiple()
        lock = self.harness.cache.lock(result.last_device_node)
        node = self.harness.node(result.last_device_node)
        self.held[id(lock)] = path_tokens(node)
        return lock

    @rule(lock=consumes(locks))
    def unlock(self, lock) -> None:
        del self.held[id(lock)]
        self.harness.unlock(lock)

    @rule(tokens=st.integers(1, 40))
    def evict_kv(self, tokens: int) -> None:
        core = self.harness.cache.tree_core
        evictable = core.component_evictable_size(FULL)
        freed = self.harness.cache.evict(EvictParams(num_tokens=tokens)).num_tokens_evicted
        assert freed >= min(tokens, evictable)

    @rule(count=st.integers(1, 4))
    def evict_states(self, count: int) -> None:
        core = self.harness.cache.tree_core
        unlocked = core.component_evictable_size(MAMBA)
        freed = self.harness.cache.evict_mamba(count).mamba_num_evicted
        assert freed >= min(count, unlocked), "no progress while an unlocked state exists"

    @rule(tokens=st.integers(0, 60), count=st.integers(0, 5))
    def allocation(self, tokens: int, count: int) -> None:
        """An allocation fails only where nothing is left to evict for it."""
        harness, core = self.harness, self.harness.cache.tree_core
        state = harness.alloc_state(count) if count else None
        if count and state is None:
            assert core.component_evictable_size(MAMBA) == 0
            assert not harness.elastic or core.component_evictable_size(FULL) == 0
        kv = harness.alloc_kv(tokens) if tokens else None
        if tokens and kv is None:
            assert core.component_evictable_size(FULL) == 0
            if orders_shared_memory(harness.cache.policy):
                assert core.component_evictable_size(MAMBA) == 0
        if state is not None:
            harness.requests.mamba_allocator.free(state)
        if kv is not None:
            harness.allocator.free(kv)

    @rule()
    def flush(self) -> None:
        if not self.held:
            self.harness.requests.mamba_allocator.clear()
            self.harness.allocator.clear()
            self.harness.cache.reset()

    @invariant()
    def slots_and_view_are_sound(self) -> None:
        self.harness.check()
        assert not self.harness.cache.stats.fallbacks

    @invariant()
    def what_is_locked_is_cached(self) -> None:
        for path in self.held.values():
            result = self.harness.cache.tree_core.match_full_device_prefix(radix_key(list(path)))
            assert result[0] == len(path), "locked KV was evicted"
            state = self.harness.cache.tree_core.get_component_device_value(result[1], MAMBA)
            assert state is not None, "a locked state was evicted"


SHARED = {"elastic": True, "cost": SHARED_COST}
VARIANTS = {
    "lru": (1, {}),
    "marconi": (2, {}),
    "marconi_state_only": (2, {"marconi_evict_pools": "state"}),
    "marconi_parent": (2, {"marconi_savings": "parent"}),
    "marconi_sessions": (2, {"sessions": True}),
    "value": (3, {}),
    "lru_shared_memory": (1, SHARED),
    "marconi_shared_memory": (2, SHARED),
    "marconi_state_only_shared_memory": (2, {"marconi_evict_pools": "state", **SHARED}),
    "value_shared_memory": (3, SHARED),
    "value_shared_memory_sessions": (3, {"sessions": True, **SHARED}),
    "lru_rust": (1, {"core": "rust"}),
    "marconi_rust": (2, {"core": "rust"}),
    "value_rust": (3, {"core": "rust"}),
    "lru_rust_shared_memory": (1, {"core": "rust", **SHARED}),
    "marconi_rust_shared_memory": (2, {"core": "rust", **SHARED}),
    "value_rust_shared_memory": (3, {"core": "rust", **SHARED}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_life(variant: str) -> None:
    policy, options = VARIANTS[variant]
    life = type("Life", (CacheLife,), {"policy": policy, "options": options})
    live(life, examples=60 if "elastic" in options else 120)
