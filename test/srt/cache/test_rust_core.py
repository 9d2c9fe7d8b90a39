"""Every policy on SGLang's Rust tree core is its twin on the Python core, victim for victim."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    multiple,
    rule,
)
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.marconi.tree import NO_NAMESPACE, Namespace
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.rust_tree_core.adapter import RustUnifiedTreeCore
from tree_harness import FULL, MAMBA, TreeHarness, live, server_context

KV_TOKENS, STATE_SLOTS = 96, 8
#: States and KV share their bytes; a state weighs as much as 8 tokens, all memory holds 160.
SHARED = {
    "elastic": True,
    "cost": ModelCost(a=10**6, b=100, kv_bytes_per_token=16, state_bytes=128),
}
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=24)
NAMESPACES = st.sampled_from(
    [
        NO_NAMESPACE,
        ("adapter", None),
        ("", None),
        (None, "salt"),
        # Joined by a NUL, as C would, these two are one.
        ("a\0b", None),
        ("a", "b"),
    ]
)
#: What a lock may leave out: SGLang gives up the state of a running request before its KV.
SKIPPED = st.sampled_from([(), (MAMBA,)])


class Twins(RuleBasedStateMachine):
    """One history on both cores; every answer and every victim is compared."""

    policy = 2
    options: ClassVar[dict[str, object]] = {}
    states_per_path = -1

    locks = Bundle("locks")
    pins = Bundle("pins")

    def __init__(self) -> None:
        super().__init__()
        self.context = server_context(max_states_per_path=self.states_per_path)
        self.context.__enter__()
        self.twins = [
            TreeHarness(
                self.policy,
                core=core,
                kv_tokens=KV_TOKENS,
                state_slots=STATE_SLOTS,
                **self.options,
            )
            for core in ("python", "rust")
        ]
        self.held = 0

    def teardown(self) -> None:
        for harness in self.twins:
            harness.check()
            assert not harness.cache.stats.fallbacks
        self.context.__exit__(None, None, None)

    def both(self, operation: Any) -> tuple[Any, Any]:
        """Do ``operation`` to both; what it observes and whom it evicts must be the same."""
        answers = [operation(harness) for harness in self.twins]
        python, rust = ([observed for observed, _ in answers], [h.victims for h in self.twins])
        assert python[0] == python[1]
        assert rust[0] == rust[1]
        return answers[0][1], answers[1][1]

    @rule(tokens=TOKENS, namespace=NAMESPACES)
    def insert(self, tokens: list[int], namespace: Namespace) -> None:
        self.both(lambda harness: (insert(harness, tokens, namespace), None))

    @rule(tokens=TOKENS, more=st.lists(st.integers(0, 2), min_size=1, max_size=6))
    def continue_conversation(self, tokens: list[int], more: list[int]) -> None:
        for turn in (tokens, tokens + more):
            self.both(lambda harness, turn=turn: (insert(harness, turn, NO_NAMESPACE), None))

    @rule(tokens=TOKENS, namespace=NAMESPACES)
    def match(self, tokens: list[int], namespace: Namespace) -> None:
        self.both(lambda harness: (seen(match(harness, tokens, namespace)), None))

    @rule(target=locks, tokens=TOKENS, skipped=SKIPPED)
    def lock(self, tokens: list[int], skipped: tuple[Any, ...]) -> Any:
        if self.held >= 3:
            return multiple()
        self.held += 1

        def locked(harness: TreeHarness) -> Any:
            result = match(harness, tokens, NO_NAMESPACE)
            receipt = harness.cache.inc_lock_ref(result.last_device_node, skipped)
            return seen(result), (result.last_device_node, receipt.to_dec_params())

        return self.both(locked)

    @rule(locks=consumes(locks), in_two_steps=st.booleans())
    def unlock(self, locks: Any, in_two_steps: bool) -> None:
        self.held -= 1
        for harness, (node, receipt) in zip(self.twins, locks, strict=True):
            skipped = receipt.skipped_lock_components
            if in_two_steps and not skipped:
                first, receipt = (
                    replace(receipt, skipped_lock_components=(component,))
                    for component in (FULL, MAMBA)
                )
                harness.cache.dec_lock_ref(node, first)
            harness.cache.dec_lock_ref(node, receipt)

    @rule(target=pins, tokens=TOKENS)
    def pin(self, tokens: list[int]) -> Any:
        if self.held >= 3:
            return multiple()
        self.held += 1

        def pinned(harness: TreeHarness) -> Any:
            matched, node, _ = harness.cache.tree_core.match_full_device_prefix(
                key(tokens, NO_NAMESPACE)
            )
            harness.cache.tree_core.inc_full_pin(node)
            return matched, node

        return self.both(pinned)

    @rule(pins=consumes(pins))
    def unpin(self, pins: Any) -> None:
        self.held -= 1
        for harness, node in zip(self.twins, pins, strict=True):
            harness.cache.tree_core.dec_full_pin(node)

    @rule(kv=st.integers(0, 40), states=st.integers(0, 4))
    def evict(self, kv: int, states: int) -> None:
        def evicted(harness: TreeHarness) -> Any:
            result = harness.cache.evict(EvictParams(num_tokens=kv, mamba_num=states))
            sizes = [
                size(component)
                for size in (
                    harness.cache.tree_core.component_evictable_size,
                    harness.cache.tree_core.component_protected_size,
                )
                for component in (FULL, MAMBA)
            ]
            return (result.num_tokens_evicted, result.mamba_num_evicted, sizes), None

        self.both(evicted)


def key(tokens: list[int], namespace: Namespace) -> RadixKey:
    return RadixKey(array("q", tokens), extra_key=namespace[0], cache_salt=namespace[1])


def match(harness: TreeHarness, tokens: list[int], namespace: Namespace) -> Any:
    return harness.cache.match_prefix(MatchPrefixParams(key=key(tokens, namespace)))


def seen(result: Any) -> tuple[object, ...]:
    return (result.device_prefix_len, result.full_kv_hit_length, result.mamba_branching_seqlen)


def insert(harness: TreeHarness, tokens: list[int], namespace: Namespace) -> object:
    """Cache ``tokens`` as a request that locks what it found and frees what was there already."""
    cache = harness.cache
    result = match(harness, tokens, namespace)
    matched = result.device_prefix_len
    lock = cache.lock(result.last_device_node)
    state, fresh = harness.alloc_state(), harness.alloc_kv(len(tokens) - matched)
    cache.unlock(lock)
    if state is None or fresh is None:
        if state is not None:
            harness.requests.mamba_allocator.free(state)
        if fresh is not None:
            harness.allocator.free(fresh)
        return seen(result)
    root = cache.root_node_handle(namespace[0])
    held = cache.tree_core.collect_full_device_indices(result.last_device_node, root)[:matched]
    inserted = cache.insert(
        InsertParams(
            key=key(tokens, namespace),
            value=torch.cat([held, fresh]),
            mamba_value=state,
            prev_prefix_len=matched,
        )
    )
    if inserted.mamba_exist:
        harness.requests.mamba_allocator.free(state)
    return seen(result), inserted.prefix_len, inserted.mamba_exist


@pytest.mark.parametrize("core", ["python", "rust"])
@pytest.mark.parametrize(
    ("one", "other"),
    [(("a\0b", None), ("a", "b")), ((None, None), ("", None)), (("a", None), (None, "a"))],
)
def test_two_namespaces_are_never_taken_for_one(core: str, one: Namespace, other: Namespace):
    with server_context():
        harness = TreeHarness(3, core=core, kv_tokens=KV_TOKENS, state_slots=STATE_SLOTS)
        insert(harness, [1, 2, 3], one)
        assert match(harness, [1, 2, 3], other).device_prefix_len == 0
        insert(harness, [1, 2, 4], other)
        assert match(harness, [1, 2, 3], one).device_prefix_len == 3
        assert harness.cache.evict_mamba(2).mamba_num_evicted == 2
        assert harness.cache.view.is_sound and not harness.cache.stats.fallbacks
        harness.check()


VARIANTS = {
    "lru": (1, {}),
    "marconi": (2, {}),
    "marconi_state_only": (2, {"marconi_evict_pools": "state"}),
    "marconi_heavy": (2, {"marconi_eff_weight": 2.0}),
    "value": (3, {}),
    "value_state_only": (3, {"marconi_evict_pools": "state"}),
    "lru_shared_memory": (1, SHARED),
    "marconi_shared_memory": (2, SHARED),
    "marconi_state_only_shared_memory": (2, {"marconi_evict_pools": "state", **SHARED}),
    "value_shared_memory": (3, SHARED),
}


CAPS = {"lru": 0, "marconi": 1, "value": 2, "value_shared_memory": 1}


@pytest.mark.parametrize(("variant", "cap"), [*((name, -1) for name in VARIANTS), *CAPS.items()])
def test_one_history_one_order_of_victims(variant: str, cap: int) -> None:
    policy, options = VARIANTS[variant]
    twins = type(
        "TwinsOf" + variant,
        (Twins,),
        {"policy": policy, "options": options, "states_per_path": cap},
    )
    live(twins, examples=30 if "elastic" in options or cap >= 0 else 60)


def test_a_cap_that_fails_leaves_the_mirror_as_the_tree_is(monkeypatch):
    def broken(*args: Any) -> None:
        raise RuntimeError("the core kept all")

    with server_context(max_states_per_path=0):
        harness = TreeHarness(3, core="rust", kv_tokens=KV_TOKENS, state_slots=STATE_SLOTS)
        monkeypatch.setattr(RustUnifiedTreeCore, "evict_excess_path_states", broken)
        harness.insert([1])
        harness.insert([1, 2])
        stats = harness.cache.stats
        assert stats.errors == 1 and harness.states() == {(1,), (1, 2)}
        assert harness.cache.view.is_sound
        harness._check_mirror(harness.cache.tree)
