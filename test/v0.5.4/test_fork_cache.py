"""The patched MambaRadixCache of SGLang 0.5.4: the founding cases, policy 1 against stock, more."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from fork_harness import COST, ForkHarness, path_tokens
from replay_v0_5_4 import serve


def sequence(length: int, first: int) -> list[int]:
    """``length`` tokens that share nothing with another ``first``."""
    return [first * 1000 + i for i in range(length)]


def request(tokens: list[int]) -> SimpleNamespace:
    return SimpleNamespace(req_pool_idx=None, mamba_pool_idx=None, origin_input_ids=tokens)


# -- case 1: match_prefix and copy on write


@pytest.mark.parametrize("policy", [None, 1, 2])
def test_match_prefix_finds_the_deepest_state_and_copies_it_on_write(policy):
    harness = ForkHarness(policy)
    shared = sequence(8, 1)
    harness.insert(shared)
    harness.insert(shared + sequence(4, 2))
    harness.insert(shared + sequence(6, 3))

    assert harness.hit(shared) == 8
    assert harness.hit(shared + sequence(4, 2)) == 12
    assert harness.hit(shared + sequence(6, 3)[:3]) == 8, "no state in the middle of a node"
    assert harness.hit(sequence(5, 9)) == 0

    pool = harness.requests.mamba_pool
    req = request(shared + sequence(4, 2))
    node = harness.match(req.origin_input_ids).last_device_node
    cached = node.mamba_value
    pool.mamba_cache.temporal[:, cached] = 7.0
    result = harness.match(req.origin_input_ids, cow_mamba=True, req=req)
    assert result.device_prefix_len == 12
    own = req.mamba_pool_idx
    assert own.item() not in cached.tolist(), "the request writes into a slot of its own"
    assert torch.all(pool.mamba_cache.temporal[:, own] == 7.0)
    pool.mamba_cache.temporal[:, own] += 1.0
    assert torch.all(pool.mamba_cache.temporal[:, cached] == 7.0), "the cached state is untouched"
    harness.free_state(own.unsqueeze(0))
    harness.check()


@pytest.mark.parametrize("policy", [1, 2])
def test_copy_on_write_evicts_another_state_where_none_is_free(policy):
    harness = ForkHarness(policy, state_slots=3)
    for first in (1, 2, 3):
        harness.insert(sequence(6, first))
    req = request(sequence(6, 2))
    assert harness.match(req.origin_input_ids, cow_mamba=True, req=req).device_prefix_len == 6
    assert tuple(sequence(6, 2)) in harness.states() and len(harness.states()) == 2
    harness.free_state(req.mamba_pool_idx.unsqueeze(0))
    harness.check()


# -- case 2: the order of eviction


def contend(harness: ForkHarness) -> list[tuple[int, ...]]:
    """One long prefix, then short ones; returns the states' paths in the order they go."""
    harness.insert(sequence(120, 1))
    for i in range(2, 8):
        harness.insert(sequence(4, i))
    gone = []
    before = harness.states()
    while before:
        harness.cache.evict_mamba(1)
        after = harness.states()
        gone.extend(before - after)
        before = after
    harness.check()
    return gone


def test_eviction_order_is_lru_at_alpha_0_and_differs_above():
    by_age = [tuple(sequence(120, 1))] + [tuple(sequence(4, i)) for i in range(2, 8)]
    assert contend(ForkHarness(None)) == by_age
    assert contend(ForkHarness(1)) == by_age
    assert contend(ForkHarness(2, marconi_eff_weight=0)) == by_age
    weighted = contend(ForkHarness(2, marconi_eff_weight=2.0))
    assert weighted != by_age
    assert weighted[0] == tuple(sequence(4, 2)), "the oldest of the short ones goes first"


# -- case 3: FLOP efficiency keeps the long sequence


@pytest.mark.parametrize("savings", ["surviving", "parent"])
def test_one_long_sequence_outlives_several_short_ones(savings):
    lru, marconi = ForkHarness(1), ForkHarness(2, marconi_eff_weight=2.0, marconi_savings=savings)
    for harness in (lru, marconi):
        harness.insert(sequence(150, 1))
        for i in range(2, 40):
            harness.insert(sequence(4, i))
        harness.check()
    assert lru.hit(sequence(150, 1)) == 0
    assert marconi.hit(sequence(150, 1)) == 150
    assert marconi.hit(sequence(4, 39)) == 4, "the newest stays too"


# -- policy 1 is stock


def random_life(harness: ForkHarness, seed: int, operations: int) -> list[object]:
    """Thousands of operations of every kind; returns all that a caller could observe."""
    rng = random.Random(seed)
    seen: list[object] = []
    sessions = [[rng.randrange(3) for _ in range(8)] for _ in range(6)]
    locks = []
    for _ in range(operations):
        kind = rng.random()
        which = rng.randrange(len(sessions))
        tokens = sessions[which] + [rng.randrange(3) for _ in range(rng.randrange(1, 9))]
        if kind < 0.45:
            seen.append(harness.insert(tokens))
            sessions[which] = tokens if len(tokens) < 90 else tokens[: rng.randrange(1, 20)]
        elif kind < 0.7:
            seen.append(harness.hit(tokens))
        elif kind < 0.8 and len(locks) < 3:
            locks.append(harness.lock_prefix(tokens))
        elif kind < 0.9 and locks:
            harness.unlock(locks.pop(rng.randrange(len(locks))))
        elif kind < 0.95:
            harness.cache.evict(rng.randrange(1, 30))
        else:
            harness.cache.evict_mamba(rng.randrange(1, 3))
        seen.append((harness.cache.full_evictable_size(), harness.cache.mamba_evictable_size()))
    for lock in locks:
        harness.unlock(lock)
    harness.check()
    return seen


@pytest.mark.parametrize("seed", range(6))
def test_policy_1_has_the_victims_of_stock_in_the_same_order(seed):
    stock, ours = ForkHarness(None), ForkHarness(1)
    assert random_life(stock, seed, 2000) == random_life(ours, seed, 2000)
    assert stock.victims == ours.victims
    assert len(stock.victims) > 500
    taken = {"state": "state_only", "leaf": "leaf_with_state", "kv": "leaf_kv_only"}
    counted = ours.cache.stats.victims
    for what, kind in taken.items():
        number = sum(1 for found, _ in ours.victims if found == what)
        assert number == sum(count for (_, name), count in counted.items() if name == kind)


@pytest.mark.parametrize("policy", [None, 1, 2])
def test_the_sanity_check_of_sglang_stays_clean(policy):
    harness, rng = ForkHarness(policy), random.Random(7)
    sessions = [[rng.randrange(3) for _ in range(8)] for _ in range(6)]
    for i in range(1500):
        which = rng.randrange(len(sessions))
        tokens = sessions[which] + [rng.randrange(3) for _ in range(rng.randrange(1, 9))]
        assert harness.insert(tokens)
        sessions[which] = tokens if len(tokens) < 90 else tokens[: rng.randrange(1, 20)]
        if i % 7 == 0:
            harness.cache.evict(rng.randrange(1, 30))
        if i % 5 == 0:
            harness.cache.evict_mamba(rng.randrange(1, 3))
        harness.cache.sanity_check()
    assert len(harness.victims) > 500
    harness.check()


@pytest.mark.parametrize("options", [{}, {"marconi_evict_pools": "state"}])
def test_same_requests_same_victims(options):
    lives = []
    for _ in range(2):
        harness = ForkHarness(2, **options)
        random_life(harness, 5, 1500)
        lives.append(harness.victims)
    assert lives[0] == lives[1] and len(lives[0]) > 300


# -- forks, surviving ancestors, locks


def test_a_fork_is_evicted_only_when_nothing_else_is_left():
    harness = ForkHarness(2)
    fork = sequence(10, 1)
    harness.insert(fork)
    leaves = [fork + sequence(4, i) for i in (2, 3)]
    locks = []
    for leaf in leaves:
        harness.insert(leaf)
        locks.append(harness.lock_prefix(leaf))
    harness.cache.evict_mamba(1)
    assert harness.states() == {tuple(leaf) for leaf in leaves}, "progress while one is unlocked"
    for lock in locks:
        harness.unlock(lock)
    harness.check()


def test_saving_is_measured_from_the_surviving_state_above():
    harness = ForkHarness(2)
    inner, outer = sequence(20, 1), sequence(60, 1)
    harness.insert(inner)
    harness.insert(outer)
    node = harness.match(outer).last_device_node
    assert harness.cache.view.prefix(node).reuse_from == 20
    lock = harness.lock(node)
    harness.cache.evict_mamba(1)
    harness.unlock(lock)
    assert harness.states() == {tuple(outer)}
    prefix = harness.cache.view.prefix(node)
    assert (prefix.reuse_from, prefix.segment_from, prefix.depth) == (0, 20, 60)
    assert harness.cache.marconi.savings.flops_saved(prefix) == COST.flops(0, 60)
    harness.check()


def test_each_victim_of_one_eviction_is_chosen_anew():
    """The second choice sees what the first one changed: nothing survives above any more."""
    harness = ForkHarness(2, marconi_eff_weight=0)
    harness.insert(sequence(10, 1))
    harness.insert(sequence(30, 1))
    harness.insert(sequence(5, 2))
    seen = []
    choose = harness.cache.view.victim

    def watched(pool):
        node = choose(pool)
        seen.append((path_tokens(node), harness.cache.view.prefix(node).reuse_from))
        return node

    harness.cache.view.victim = watched
    harness.cache.evict_mamba(2)
    assert seen == [(tuple(sequence(10, 1)), 0), (tuple(sequence(30, 1)), 0)]
    harness.check()


def test_a_locked_state_is_never_a_victim():
    harness = ForkHarness(2, state_slots=6)
    kept = sequence(12, 1)
    harness.insert(kept)
    lock = harness.lock_prefix(kept)
    for i in range(2, 30):
        harness.insert(sequence(5, i))
    assert harness.hit(kept) == 12
    harness.unlock(lock)
    harness.check()


# -- errors never reach the caller


@pytest.mark.parametrize("pool", ["state", "kv"])
def test_an_error_in_scoring_falls_back_to_lru_and_is_counted(pool, monkeypatch, caplog):
    harness, lru = ForkHarness(2), ForkHarness(1)
    for h in (harness, lru):
        for i in range(1, 8):
            h.insert(sequence(10, i))

    def broken(*args, **kwargs):
        raise ZeroDivisionError("a score that cannot be")

    monkeypatch.setattr(harness.cache.policy, "victim", broken)
    for h in (harness, lru):
        if pool == "state":
            h.cache.evict_mamba(3)
        else:
            h.cache.evict(25)
    assert harness.victims == lru.victims
    assert harness.cache.stats.fallbacks[pool] == 3
    assert caplog.text.count("a score that cannot be") == 1, "logged once"
    harness.check()


def test_an_error_in_the_view_makes_decisions_lru_until_the_next_flush(monkeypatch):
    harness = ForkHarness(2)
    harness.insert(sequence(10, 1))
    with monkeypatch.context() as patch:
        patch.setattr(harness.cache.view, "leaf_sets_updated", None)
        harness.insert(sequence(10, 2))
    assert not harness.cache.view.is_sound and harness.cache.stats.errors > 0
    harness.cache.evict_mamba(1)
    assert harness.states() == {tuple(sequence(10, 2))}
    assert harness.cache.stats.fallbacks["state"] == 1
    harness.cache.reset()
    assert harness.cache.view.is_sound


# -- counters


def look_up(harness: ForkHarness, tokens: list[int]) -> dict[str, int]:
    """Lost tokens of one request, as the server counts them."""
    before = dict(harness.cache.stats.lost_tokens)
    req = request(tokens)
    harness.match(tokens, req=req)
    harness.cache.count_request(req)
    after = harness.cache.stats.lost_tokens
    return {reason: count - before.get(reason, 0) for reason, count in after.items()}


def test_a_health_check_ticks_no_clock_and_counts_as_no_request():
    harness = ForkHarness(3)
    harness.insert(sequence(20, 1))
    req = request(sequence(30, 1))
    req.rid = "HEALTH_CHECK_1"
    tick, counted = harness.cache.view.now, harness.cache.stats.as_dict()
    assert harness.match(req.origin_input_ids, req=req).device_prefix_len == 20
    kv, state = harness.alloc_kv(5), harness.alloc_state()
    with harness.cache._serving(req):
        harness.cache.insert(harness.key(sequence(5, 9)), kv, state)
    assert harness.cache.view.now == tick and harness.cache.stats.as_dict() == counted
    assert tuple(sequence(5, 9)) in harness.states()
    look_up(harness, sequence(20, 1))
    assert harness.cache.view.now == tick + 1 and harness.cache.stats.requests == 1
    harness.check()


def test_lost_tokens_are_told_apart_by_reason():
    harness = ForkHarness(1)
    inner, outer = sequence(100, 1), sequence(200, 1)
    harness.insert(inner)
    harness.insert(outer)
    fresh = {"state_evicted": 0, "kv_evicted": 0, "never_admitted": 0}
    assert look_up(harness, sequence(50, 7)) == fresh
    assert look_up(harness, outer) == fresh
    assert look_up(harness, outer[:150]) == {**fresh, "never_admitted": 50}

    harness.hit(outer)
    harness.cache.evict_mamba(1)
    assert harness.states() == {tuple(outer)}
    assert look_up(harness, inner) == {**fresh, "state_evicted": 100}

    harness.cache.evict(100)
    assert look_up(harness, outer) == {**fresh, "kv_evicted": 200}
    assert harness.cache.stats.errors == 0


def test_counters_of_victims_bytes_and_flops():
    harness = ForkHarness(2)
    inner, outer = sequence(20, 1), sequence(60, 1)
    harness.insert(inner)
    harness.insert(outer)
    lock = harness.lock_prefix(outer)
    harness.cache.evict_mamba(1)
    stats = harness.cache.stats
    assert stats.victims == {("state", "state_only"): 1}
    assert stats.bytes_evicted == COST.state_bytes and stats.flops_evicted == COST.flops(0, 20)
    harness.unlock(lock)
    harness.cache.evict(30)
    assert stats.victims["kv", "leaf_with_state"] == 1
    assert stats.victims["kv", "leaf_kv_only"] == 1, "a tombstone left without children goes too"
    assert stats.kv_tokens_evicted == 60 and stats.states_evicted == 2
    assert stats.bytes_evicted == 2 * COST.state_bytes + 60 * COST.kv_bytes_per_token
    assert stats.flops_evicted == COST.flops(0, 20) + COST.flops(0, 60)
    shown = harness.cache.marconi_state()
    assert shown["tree_core"] == "MarconiRadixCache" and shown["cached_prefixes"] == 0
    assert stats.errors == 0


# -- whole requests


@pytest.mark.parametrize("policy", [None, 1, 2])
def test_requests_are_served_and_no_slot_is_lost(policy):
    """Conversations that grow, in pools too small for all of them, one prompt too long for any."""
    harness, rng = ForkHarness(policy, kv_tokens=256, state_slots=8), random.Random(3)
    sessions = [[rng.randrange(50) for _ in range(10)] for _ in range(8)]
    hits = 0
    for _ in range(300):
        which = rng.randrange(len(sessions))
        reply = [rng.randrange(50) for _ in range(rng.randrange(1, 6))]
        served = serve(harness, sessions[which], reply, chunk=16)
        assert served.served and served.hit < len(sessions[which])
        hits += served.hit
        harness.check()
        sessions[which] += [*reply, rng.randrange(50)]
        if len(sessions[which]) > 80:
            sessions[which] = sessions[which][:10]
    assert hits > 0 and len(harness.victims) > 100
    assert not serve(harness, sequence(300, 1), [1], chunk=16).served
    harness.check()
    if policy is not None:
        assert harness.cache.stats.hit_tokens == hits
        assert harness.cache.stats.requests == 301
    for session in sessions:
        tail = sequence(3, 77)
        serve(harness, session, tail)
        assert harness.hit(session + tail) == len(session + tail), "a reply's end can be resumed"
