"""An error anywhere in our code leaves the cache serving: no exception, no slot lost, recovery.

Each test breaks one function at random for a thousand operations of a real cache, and mends it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from tree_harness import TreeHarness, random_life, server_context

VIEW = (
    *("state_created", "state_consumed", "split", "removed", "leaf_sets_updated", "changed"),
    *("state_came_or_went", "report_some", "report_left", "refresh", "victim", "resumption"),
)
POLICY = ("on_insert", "on_hit", "on_change", "on_remove", "victim")
LOOKUPS = ("state_created", "prefix_deleted", "hash_deleted", "note")
STATS = ("count_victim", "count_lookup")
MIRROR = ("put_state", "use_state", "drop_state", "is_evictable_leaf")
LEAVES = ("matched", "inserted", "changed", "removed")
CORE = ("_hold", "_excess_above", "_used_before", "_matched", "_locked", "_states_evicted")

Part = Callable[[TreeHarness], Any]
PARTS: dict[str, tuple[Part, tuple[str, ...], tuple[str, ...]]] = {
    "view": (lambda h: h.cache.view, VIEW, ("python", "rust")),
    "policy": (lambda h: h.cache.policy, POLICY, ("python", "rust")),
    "lookups": (lambda h: h.cache._lookups, LOOKUPS, ("python", "rust")),
    "stats": (lambda h: h.cache.stats, STATS, ("python", "rust")),
    "mirror": (lambda h: h.cache.tree_core.mirror, MIRROR, ("rust",)),
    "leaves": (lambda h: h.cache.tree_core._leaves, LEAVES, ("rust",)),
    "core": (lambda h: h.cache.tree_core, CORE, ("rust",)),
}
CASES = [
    pytest.param(core, part, name, id=f"{core}-{part}.{name}")
    for part, (_, names, cores) in PARTS.items()
    for name in names
    for core in cores
]


class Broken(RuntimeError):
    """Injected."""


def break_at_random(owner: Any, name: str, seed: int) -> Callable[[], int]:
    """Make a method raise at one call in eight; what is returned mends it and counts."""
    original, rng, raised = getattr(owner, name), random.Random(seed), [0]

    def broken(*args: Any, **kwargs: Any) -> Any:
        if rng.random() < 0.125:
            raised[0] += 1
            raise Broken(name)
        return original(*args, **kwargs)

    setattr(owner, name, broken)

    def mend() -> int:
        delattr(owner, name)
        return raised[0]

    return mend


def slots_are_whole(harness: TreeHarness) -> None:
    harness.cache.sanity_check()
    harness._check_pools(
        harness.cache.all_values_flatten().tolist(),
        harness.cache.all_mamba_values_flatten().tolist(),
    )


@pytest.mark.parametrize(("core", "part", "name"), CASES)
def test_a_fault_costs_the_policy_and_nothing_else(
    core: str, part: str, name: str, monkeypatch: pytest.MonkeyPatch
):
    # What a life leaves behind is checked here, errors and all.
    monkeypatch.setattr(TreeHarness, "check", slots_are_whole)
    with server_context():
        # Times of leaves are kept where SGLang's order of KV counts.
        pools = "state" if part == "leaves" else "both"
        harness = TreeHarness(3, core=core, kv_tokens=160, state_slots=9, marconi_evict_pools=pools)
        random_life(harness, 1, 40)
        mend = break_at_random(PARTS[part][0](harness), name, 7)
        random_life(harness, 2, 1000)
        raised = mend()
        stats = harness.cache.stats
        # What is not reported at once is reported before the next decision.
        if raised and name != "report_some":
            assert stats.errors + stats.fallbacks.total() > 0, "a fault that nobody counts"
        before = stats.fallbacks.total()
        # A recovery that failed is tried again after twice as long.
        for seed in range(3, 40):
            random_life(harness, seed, 80)
            if harness.cache.view.is_sound:
                break
        assert harness.cache.view.is_sound, "it did not recover"
        harness.cache.view._check()
        before = stats.fallbacks.total()
        assert harness.cache.evict(EvictParams(num_tokens=8, mamba_num=2)).num_tokens_evicted >= 8
        assert stats.fallbacks.total() == before, "the policy does not choose again"
        slots_are_whole(harness)
