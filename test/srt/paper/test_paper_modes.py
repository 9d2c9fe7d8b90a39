"""Each of the four corrections on a case made by hand, and the rules both modes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from paper import AS_PUBLISHED, CORRECTED, Fixes, PaperCache, PaperConfig, PaperModel
from paper.records import RequestRecord

MODEL = PaperModel()
STATE, KV = MODEL.state_bytes, MODEL.kv_bytes_per_token
EFFICIENCY_DECIDES = 100.0


def run_of(token: int, length: int) -> list[int]:
    return [token] * length


def served(
    sequences: Sequence[list[int]], config: PaperConfig, spare: int = 0
) -> tuple[PaperCache, RequestRecord]:
    """All sequences; all but the last fit, with ``spare`` bytes to spare, so the last evicts."""
    roomy = PaperCache(replace(config, capacity_bytes=10**15))
    for sequence in sequences[:-1]:
        roomy.serve(sequence, [])
    cache = PaperCache(replace(config, capacity_bytes=roomy.tree_bytes + spare))
    for sequence in sequences[:-1]:
        assert not cache.serve(sequence, []).evict_called
    return cache, cache.serve(sequences[-1], [])


def scored(fixes: Fixes, alpha: float) -> PaperConfig:
    return PaperConfig("v3", 0, alpha, fixes=fixes)


@pytest.mark.parametrize("corrected", [False, True])
def test_mlp_of_parent(corrected):
    """10 tokens below a prefix of 100 look better than 20 tokens alone, until corrected."""
    prefix = run_of(1, 100)
    sequences = [
        prefix + run_of(2, 10),
        prefix + run_of(3, 10),
        run_of(4, 20),
        run_of(5, 1),
    ]
    fixes = Fixes(mlp_of_parent=corrected)
    _, last = served(sequences, scored(fixes, EFFICIENCY_DECIDES))
    assert last.evictions[0].path_tokens == (110 if corrected else 20)


@pytest.mark.parametrize("corrected", [False, True])
def test_memory_of_segment(corrected):
    """30 tokens below a prefix of 1,000 are charged for the prefix, until corrected."""
    prefix = run_of(1, 1000)
    sequences = [
        prefix + run_of(2, 30),
        prefix + run_of(3, 30),
        run_of(4, 20),
        run_of(5, 1),
    ]
    fixes = Fixes(mlp_of_parent=True, memory_of_segment=corrected)
    _, last = served(sequences, scored(fixes, EFFICIENCY_DECIDES))
    assert last.evictions[0].path_tokens == (20 if corrected else 1030)


def test_bytes_of_victim_when_the_last_candidate_is_smaller():
    """As published the leaf of 1,000 tokens is taken for one of 1 token, and two more go."""
    sequences = [run_of(1, 1000), run_of(2, 50), run_of(3, 1), run_of(4, 500)]
    _, published = served(sequences, scored(AS_PUBLISHED, 0.0))
    _, corrected = served(sequences, scored(Fixes(bytes_of_victim=True), 0.0))
    assert [victim.own_tokens for victim in published.evictions] == [1000, 50, 1]
    assert [victim.own_tokens for victim in corrected.evictions] == [1000]


def test_bytes_of_victim_when_the_last_candidate_is_larger():
    """As published too little is freed, and the tree ends above its capacity."""
    sequences = [run_of(1, 1), run_of(2, 50), run_of(3, 1000), run_of(4, 400)]
    published, first = served(sequences, scored(AS_PUBLISHED, 0.0))
    corrected, second = served(sequences, scored(Fixes(bytes_of_victim=True), 0.0))
    assert [victim.own_tokens for victim in first.evictions] == [1]
    assert [victim.own_tokens for victim in second.evictions] == [1, 50]
    assert published.summary().requests_over_capacity == 1
    assert published.summary().under_evict_calls == 1
    assert corrected.summary().requests_over_capacity == 0


def test_reparent_changes_the_pointer_and_no_decision():
    """A merged-away node stays its grandchild's parent as published; nothing else differs."""
    chain = [run_of(1, length) for length in (10, 20, 30)]
    sequences = [*chain, run_of(2, 1)]
    published, first = served(sequences, scored(AS_PUBLISHED, 0.0), spare=KV)
    corrected, second = served(sequences, scored(Fixes(reparent=True), 0.0), spare=KV)
    assert [(v.kind, v.path_tokens) for v in first.evictions] == [("merge", 10)]
    assert first.evictions == second.evictions
    assert published.tree() == corrected.tree()
    assert published.summary().stale_parents == 1
    assert corrected.summary().stale_parents == 0


def test_a_stale_parent_is_forgotten_with_its_node():
    chain = [run_of(1, length) for length in (10, 20, 30)]
    cache, _ = served([*chain, run_of(2, 1)], scored(AS_PUBLISHED, 0.0), spare=KV)
    cache.serve(run_of(3, 3000), [])
    assert [node.own_tokens for node in cache.tree()] == [3000]
    assert cache.summary().stale_parents == 0


def test_corrected_is_all_four():
    assert Fixes(True, True, True, True) == CORRECTED


@pytest.mark.parametrize("policy", ["v1", "v3"])
@pytest.mark.parametrize("fixes", [AS_PUBLISHED, CORRECTED])
def test_the_phantom_match_is_in_both_modes(policy, fixes):
    """The specification's example: five tokens of a sequence that was never seen (B5)."""
    cache = PaperCache(PaperConfig(policy, 10**12, fixes=fixes))
    for sequence in ([1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7]):
        cache.serve(sequence, [])
    lookup = cache.serve([1, 2, 3, 4, 6, 7], []).lookup
    assert (lookup.reusable, lookup.raw) == (5, 6)
    assert (lookup.true_reusable, lookup.true_raw) == (3, 4)
    assert cache.summary().phantom_matches == 1


def test_the_clock_ticks_three_times_a_request_and_once_more_to_evict():
    cache = PaperCache(PaperConfig("v1", 1.5 * STATE))
    cache.serve([1], [2])
    assert cache.summary().clock == 3
    cache.serve([3], [4])
    assert cache.summary().clock == 7


def test_v1_stamps_a_partly_matched_leaf_and_marconi_does_not():
    stamps = {}
    for policy in ("v1", "v3"):
        cache = PaperCache(PaperConfig(policy, 10**12))
        cache.serve([1, 2, 3], [])
        cache.serve([1, 2, 4], [])
        upper, lower, leaf = cache.tree()
        assert (upper.own_tokens, upper.last_access, leaf.last_access) == (2, 6, 6)
        stamps[policy] = lower.last_access
    assert stamps == {"v1": 6, "v3": 3}


def test_a_sequence_larger_than_the_cache_is_stored_whole():
    cache = PaperCache(PaperConfig("v3", 1000))
    assert cache.serve(run_of(1, 500), []).tree_bytes == STATE + KV * 500
    assert cache.serve(run_of(1, 500), []).matched == 500
    assert cache.summary().requests_over_capacity == 2


def test_vllm_needs_a_state_a_block_and_estimates_one_block_too_low():
    cache = PaperCache(PaperConfig("vllm", 0))
    record = cache.serve(run_of(1, 80), [])
    assert (record.nodes, record.kv_tokens) == (3, 80)
    assert record.bytes_to_remove == 48 / 32 * STATE + 48 * KV
    assert cache.tree() == []


def test_vllm_tops_a_partial_block_up_in_place():
    cache = PaperCache(PaperConfig("vllm", 10**12))
    cache.serve(run_of(1, 20), [])
    record = cache.serve(run_of(1, 20), run_of(2, 20))
    assert (record.matched, record.nodes, record.kv_tokens) == (20, 2, 40)
    assert cache.serve(run_of(1, 20), []).matched == 0


def test_vllm_reuses_the_first_partial_block_in_order_not_the_longest():
    """A topped-up block moves to the end, so the shorter one comes first."""
    cache = PaperCache(PaperConfig("vllm", 10**12))
    cache.serve([1, 2, 3], [])
    cache.serve([1], [])
    assert cache.serve([1, 2, 3], [4]).matched == 3
    assert cache.serve([1, 2, 3, 4], []).matched == 1


def test_equal_scores_go_by_preorder():
    """A split's upper node and its new leaf share a stamp; the upper node comes first."""
    config = PaperConfig("v3", 0, details=True)
    _, last = served([[1, 2], [1, 3], run_of(5, 5)], config)
    assert [(v.kind, v.path_tokens) for v in last.evictions] == [("leaf", 2), ("merge", 1)]
    assert [v.margin for v in last.evictions] == [1.0, 0.0]


def test_a_term_that_is_equal_for_all_decides_nothing():
    """Three leaves of one length differ in recency alone, whatever the weight."""
    sequences = [run_of(1, 7), run_of(2, 7), run_of(1, 7), run_of(3, 7), run_of(4, 7)]
    _, last = served(sequences, scored(CORRECTED, EFFICIENCY_DECIDES))
    (victim,) = last.evictions
    assert victim.last_access == 6
    assert victim.score == EFFICIENCY_DECIDES
