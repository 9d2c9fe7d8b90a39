"""Scores, candidates and policies against brute force; nothing here touches SGLang's tree."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.eviction.marconi import MarconiPolicy
from sglang.srt.mem_cache.marconi.eviction.registry import POLICIES, create_policy
from sglang.srt.mem_cache.marconi.eviction.savings import (
    ParentSavings,
    SurvivingSavings,
    flop_efficiency,
)
from sglang.srt.mem_cache.marconi.eviction.utility import normalise, recency, utilities
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from speed.scanned_candidates import ScannedCandidates


class Linear:
    """One FLOP a token and one a pair of tokens; a state weighs 10 bytes, a token of KV 1."""

    kv_bytes_per_token = 1.0
    state_bytes = 10.0

    def flops(self, start: int, end: int) -> float:
        return (end - start) + (end * end - start * start)


def prefix(id: int, **changes: object) -> CachedPrefix:
    values: dict[str, object] = {
        "id": id,
        "order": id,
        "depth": 20,
        "segment_from": 0,
        "exclusive_from": 0,
        "reuse_from": 0,
        "children": 0,
        "has_state": True,
        "is_leaf": True,
        "state_locked": False,
        "last_access": id,
        **changes,
    }
    return CachedPrefix(**values)  # type: ignore[arg-type]


# -- scores


def test_recency_is_the_reciprocal_of_the_age_in_ticks():
    assert recency(10, 6) == 0.25
    assert recency(10, 9) == recency(10, 10) == 1.0


def test_normalise_maps_the_ends_to_0_and_1_and_equals_to_1():
    assert (normalise(2, 2, 6), normalise(6, 2, 6), normalise(3, 2, 6)) == (0.0, 1.0, 0.25)
    assert normalise(5, 5, 5) == 1.0


def test_utilities_by_hand():
    # Ages 1, 2, 4 give recencies 1, 1/2, 1/4; efficiencies 0, 10, 5.
    scores = utilities([9, 8, 6], [0.0, 10.0, 5.0], now=10, eff_weight=0.5)
    assert scores == pytest.approx([1.0, 1 / 3 + 0.5, 0.25])
    assert utilities([], [], 1, 1.0) == []


ENTRIES = st.lists(
    st.tuples(st.integers(0, 50), st.floats(0, 1e12, allow_nan=False)), min_size=1, max_size=30
)


@given(ENTRIES, st.floats(0, 4), st.integers(51, 200))
def test_utilities_lie_between_0_and_1_plus_alpha_and_fall_with_age_at_alpha_0(entries, alpha, now):
    accesses, efficiencies = zip(*entries, strict=True)
    scores = utilities(accesses, efficiencies, now, alpha)
    assert all(0 <= score <= 1 + alpha + 1e-9 for score in scores)
    plain = utilities(accesses, efficiencies, now, 0.0)
    for i, access in enumerate(accesses):
        for j, other in enumerate(accesses):
            if access < other:
                assert plain[i] < plain[j]


# -- savings


def test_surviving_savings_count_from_the_state_above_and_the_memory_really_freed():
    savings = SurvivingSavings(Linear())
    leaf = prefix(1, depth=20, segment_from=15, exclusive_from=12, reuse_from=8)
    assert savings.flops_saved(leaf) == Linear().flops(8, 20)
    assert savings.bytes_freed(leaf) == 10 + 8
    inner = prefix(1, depth=20, reuse_from=8, is_leaf=False, children=1)
    assert savings.bytes_freed(inner) == 10
    useless = prefix(1, has_state=False)
    assert savings.flops_saved(useless) == 0
    assert flop_efficiency(savings, useless) == 0
    nothing = prefix(1, has_state=False, is_leaf=False)
    assert flop_efficiency(savings, nothing) == 0, "no division by nothing freed"


def test_parent_savings_count_from_the_parent_and_whole_path_memory():
    savings = ParentSavings(Linear())
    leaf = prefix(1, depth=20, segment_from=15, exclusive_from=12, reuse_from=8)
    assert savings.flops_saved(leaf) == Linear().flops(15, 20)
    assert savings.bytes_freed(leaf) == 10 + 20


# -- candidates


def brute_force(prefixes, pool, now, alpha, excluding):
    """The victim by the definition, written the long way."""
    allowed = [p for p in prefixes if p.may_leave(pool) and p.id not in excluding]
    allowed = [p for p in allowed if p.children <= 1] or allowed
    if not allowed:
        return None
    savings = SurvivingSavings(Linear())
    rec = [1 / (now - p.last_access) for p in allowed]
    eff = [savings.flops_saved(p) / (savings.bytes_freed(p) or math.inf) for p in allowed]

    def scaled(values, i):
        return (
            (values[i] - min(values)) / (max(values) - min(values)) if len(set(values)) > 1 else 1
        )

    best = None
    for i, p in enumerate(allowed):
        score = alpha * scaled(eff, i) + scaled(rec, i)
        if best is None or (score, p.order) < best[0]:
            best = ((score, p.order), p)
    return best[1]


PREFIXES = st.lists(
    st.builds(
        lambda depth, above, children, has_state, is_leaf, locked, access: dict(
            depth=depth + above,
            reuse_from=above // 2,
            exclusive_from=above,
            segment_from=above,
            children=children,
            has_state=has_state,
            is_leaf=is_leaf and children == 0,
            state_locked=locked,
            last_access=access,
        ),
        st.integers(1, 40),
        st.integers(0, 40),
        st.integers(0, 3),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.integers(0, 12),
    ),
    max_size=14,
)


@settings(max_examples=300)
@given(PREFIXES, st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), st.sampled_from(list(Pool)))
def test_policy_evicts_in_the_order_of_brute_force(fields, alpha, pool):
    policy = MarconiPolicy(SurvivingSavings(Linear()), alpha)
    prefixes = [prefix(i, **changes) for i, changes in enumerate(fields)]
    for p in prefixes:
        policy.on_insert(p, 0)
    policy._check()
    while True:
        victim = policy.victim(pool, now=20)
        assert victim is brute_force(prefixes, pool, 20, alpha, ())
        if victim is None:
            return
        policy.on_remove(victim)
        prefixes.remove(victim)


@given(PREFIXES, st.sets(st.integers(0, 13)))
def test_excluded_candidates_are_passed_over(fields, excluding):
    candidates = ScannedCandidates(
        Pool.STATE, lambda p: flop_efficiency(SurvivingSavings(Linear()), p)
    )
    prefixes = [prefix(i, **changes) for i, changes in enumerate(fields)]
    for p in prefixes:
        candidates.put(p)
    assert candidates.lowest(Pool.STATE, 20, 1.0, excluding) is brute_force(
        prefixes, Pool.STATE, 20, 1.0, excluding
    )


def test_a_fork_goes_last_even_with_the_lowest_score():
    policy = MarconiPolicy(SurvivingSavings(Linear()), 1.0)
    fork = prefix(0, children=2, is_leaf=False, depth=2, last_access=0)
    leaf = prefix(1, depth=90, last_access=19)
    for p in (fork, leaf):
        policy.on_insert(p, 0)
    assert policy.victim(Pool.STATE, 20) is leaf
    policy.on_remove(leaf)
    assert policy.victim(Pool.STATE, 20) is fork


def test_equal_scores_go_to_the_one_that_came_first():
    policy = MarconiPolicy(SurvivingSavings(Linear()), 1.0)
    for id, order in ((5, 2), (6, 1), (7, 3)):
        policy.on_insert(prefix(id, order=order, last_access=4), 0)
    assert policy.victim(Pool.STATE, 20).id == 6


def test_changes_and_hits_move_a_candidate():
    policy = MarconiPolicy(SurvivingSavings(Linear()), 0.0)
    old, young = prefix(0, last_access=1), prefix(1, last_access=2)
    for p in (old, young):
        policy.on_insert(p, p.last_access)
    assert policy.victim(Pool.STATE, 9) is old
    old.last_access = 8
    policy.on_hit(old, 8)
    assert policy.victim(Pool.STATE, 9) is young
    young.state_locked = True
    policy.on_change(young)
    assert policy.victim(Pool.STATE, 9) is old


# -- registry


def test_create_policy_follows_the_config():
    savings = SurvivingSavings(Linear())
    lru = create_policy(MarconiConfig(1), savings)
    assert lru.pools == frozenset() and lru.victim(Pool.STATE, 1) is None
    both = create_policy(MarconiConfig(2, 0.7), savings)
    assert both.pools == frozenset(Pool) and both.eff_weight == 0.7
    state = create_policy(MarconiConfig(2, 0.7, marconi_evict_pools="state"), savings)
    assert state.pools == {Pool.STATE} and state.victim(Pool.KV, 1) is None
    assert set(POLICIES) == {1, 2, 3}
