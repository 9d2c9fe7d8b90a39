"""MambaRadixCache on real pools: the founding cases, policy 1 against stock, and more."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.managers.schedule_batch import ReqKvInfo
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.mamba_radix.core import python_core_reason
from sglang.srt.mem_cache.marconi.attach import view as view_module
from sglang.srt.mem_cache.marconi.attach.accounts import FIRST_RECOVERY
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
from sglang.srt.mem_cache.marconi.eviction import marconi as marconi_policy
from sglang.srt.mem_cache.marconi.eviction.value import policy as value_policy
from tree_harness import (
    COST,
    FULL,
    MAMBA,
    TreeHarness,
    path_tokens,
    random_life,
    sequence,
    server_context,
)

pytestmark = pytest.mark.usefixtures("context")


@pytest.fixture
def context():
    with server_context():
        yield


@pytest.fixture(params=["python", "rust"])
def core(request, monkeypatch):
    """The tree core of every cache with a policy."""
    monkeypatch.setattr(TreeHarness, "core_of_ours", request.param)
    return request.param


on_both_cores = pytest.mark.usefixtures("core")


# -- case 1: match_prefix and copy on write


@on_both_cores
@pytest.mark.parametrize("policy", [1, 2])
def test_match_prefix_finds_the_deepest_state_and_copies_it_on_write(policy):
    harness = TreeHarness(policy)
    shared = sequence(8, 1)
    harness.insert(shared)
    harness.insert(shared + sequence(4, 2))
    harness.insert(shared + sequence(6, 3))

    assert harness.hit(shared) == 8
    assert harness.hit(shared + sequence(4, 2)) == 12
    assert harness.hit(shared + sequence(6, 3)[:3]) == 8, "no state in the middle of a node"
    assert harness.hit(sequence(5, 9)) == 0

    pool = harness.requests.mamba_pool
    req = SimpleNamespace(
        kv=ReqKvInfo(), rid="r", session=None, origin_input_ids=shared + sequence(4, 2)
    )
    result = harness.match(shared + sequence(4, 2), cow_mamba=True, req=req)
    assert result.device_prefix_len == 12
    source, own = req.kv.mamba_cow_src_index, req.kv.mamba_pool_idx
    cached = harness.cache.tree_core.get_component_device_value(result.best_match_node, MAMBA)
    assert source.tolist() == cached.tolist()
    assert own.item() not in cached.tolist(), "the request writes into a slot of its own"

    pool.mamba_cache.temporal[:, cached] = 7.0
    pool.copy_from(source, own.unsqueeze(0))
    pool.mamba_cache.temporal[:, own] += 1.0
    assert torch.all(pool.mamba_cache.temporal[:, cached] == 7.0), "the cached state is untouched"
    assert torch.all(pool.mamba_cache.temporal[:, own] == 8.0)
    harness.requests.mamba_allocator.free(own.unsqueeze(0))
    harness.check()


# -- case 2: the order of eviction


def contend(harness: TreeHarness) -> list[tuple[int, ...]]:
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


@on_both_cores
def test_eviction_order_is_lru_at_alpha_0_and_differs_above():
    by_age = [tuple(sequence(120, 1))] + [tuple(sequence(4, i)) for i in range(2, 8)]
    assert contend(TreeHarness(1)) == by_age
    assert contend(TreeHarness(2, marconi_eff_weight=0)) == by_age
    weighted = contend(TreeHarness(2, marconi_eff_weight=2.0))
    assert weighted != by_age
    assert weighted[0] == tuple(sequence(4, 2)), "the oldest of the short ones goes first"


# -- case 3: FLOP efficiency keeps the long sequence


@on_both_cores
@pytest.mark.parametrize("savings", ["surviving", "parent"])
def test_one_long_sequence_outlives_several_short_ones(savings):
    lru, marconi = TreeHarness(1), TreeHarness(2, marconi_eff_weight=2.0, marconi_savings=savings)
    for harness in (lru, marconi):
        harness.insert(sequence(150, 1))
        for i in range(2, 40):
            harness.insert(sequence(4, i))
        harness.check()
    assert lru.hit(sequence(150, 1)) == 0
    assert marconi.hit(sequence(150, 1)) == 150
    assert marconi.hit(sequence(4, 39)) == 4, "the newest stays too"


# -- policy 1 is stock


@pytest.mark.parametrize("core", ["python", "rust"])
def test_a_router_hears_the_same_kv_events_as_of_stock(core):
    stock, ours = TreeHarness(None, kv_events=True), TreeHarness(1, core=core, kv_events=True)
    assert random_life(stock, 9, 800) == random_life(ours, 9, 800)
    told = [[str(event) for event in h.cache.take_events()] for h in (stock, ours)]
    assert told[0] == told[1]
    assert sum("BlockRemoved" in event for event in told[1]) > 50


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("core", "cap"), [("python", -1), ("python", 2), ("rust", -1), ("rust", 2)]
)
def test_policy_1_has_the_victims_of_stock_in_the_same_order(seed, core, cap):
    with server_context(max_states_per_path=cap):
        stock, ours = TreeHarness(None), TreeHarness(1, core=core)
        assert random_life(stock, seed, 2000) == random_life(ours, seed, 2000)
    assert stock.victims == ours.victims
    assert len(stock.victims) > 500


@on_both_cores
@pytest.mark.parametrize("policy", [2, 3])
def test_a_view_that_catches_up_bit_by_bit_stays_sound(policy, monkeypatch):
    monkeypatch.setattr(view_module, "MOST_MARKED", 2)
    monkeypatch.setattr(view_module, "REPORTED_AT_ONCE", 2)
    monkeypatch.setattr(marconi_policy, "MOST_HITS", 1)
    monkeypatch.setattr(value_policy, "MOST_HITS", 1)
    harness = TreeHarness(policy)
    for seed in range(30):
        random_life(harness, seed, 60)
    assert len(harness.victims) > 100
    assert not harness.cache.stats.fallbacks


@on_both_cores
def test_a_policy_hears_of_what_left_when_a_request_lets_go(monkeypatch):
    harness = TreeHarness(2)
    kept, gone = sequence(20, 1), sequence(20, 2)
    harness.insert(kept)
    harness.insert(gone)
    lock = harness.lock(kept)
    removed = []
    policy = harness.cache.view.policy
    monkeypatch.setattr(policy, "on_remove", lambda prefix: removed.append(prefix.depth))
    harness.cache.evict(1)
    assert harness.victims and not removed, "an eviction only notes it"
    harness.unlock(lock)
    assert removed == [20]


@on_both_cores
def test_a_decision_after_a_long_time_finds_few_marks():
    harness = TreeHarness(2, kv_tokens=4000, state_slots=400)
    for first in range(300):
        harness.insert([1000 + first] * 4)
    assert len(harness.cache.view._marked) < view_module.MOST_MARKED + 10
    harness.check()


@on_both_cores
@pytest.mark.parametrize("seed", range(2))
def test_policy_1_observes_what_the_stock_rust_core_observes(seed):
    rust, ours = TreeHarness(None, core="rust"), TreeHarness(1)
    assert random_life(rust, seed, 2000) == random_life(ours, seed, 2000)


def test_stock_keeps_its_rust_core_when_no_policy_is_set():
    assert type(TreeHarness(None, core="rust").cache.tree_core).__name__ == "RustUnifiedTreeCore"


# -- the Rust core under a policy


POLICIES = {
    "lru": (1, {}),
    "marconi": (2, {}),
    "marconi_state_only": (2, {"marconi_evict_pools": "state"}),
    "marconi_parent": (2, {"marconi_savings": "parent"}),
    "marconi_heavy": (2, {"marconi_eff_weight": 2.0}),
    "value": (3, {}),
    "value_state_only": (3, {"marconi_evict_pools": "state"}),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(2))
def test_both_cores_evict_the_same_in_the_same_order(name, seed, monkeypatch):
    monkeypatch.setattr(view_module, "MOST_MARKED", 8)
    policy, options = POLICIES[name]
    python, rust = (TreeHarness(policy, core=core, **options) for core in ("python", "rust"))
    assert random_life(python, seed, 1500) == random_life(rust, seed, 1500)
    assert python.victims == rust.victims and len(rust.victims) > 400
    counters = [harness.cache.stats.as_dict() for harness in (python, rust)]
    for counter in counters:
        del counter["victim_digest"]  # it has the cores' own ids of nodes
    assert counters[0] == counters[1] and not rust.cache.stats.fallbacks


@pytest.mark.parametrize(
    ("core", "arguments", "cap"),
    [
        ("MambaRadixRustTreeCore", {}, -1),
        ("MambaRadixRustTreeCore", {"elastic": True}, -1),
        ("HostedRustTreeCore", {"lower_tier": LowerTier.HOST}, -1),
        ("MambaRadixTreeCore", {"lower_tier": LowerTier.HOST, "elastic": True}, -1),
        ("MambaRadixTreeCore", {"lower_tier": LowerTier.LINKER}, -1),
        ("MambaRadixTreeCore", {"core": "python"}, -1),
        ("MambaRadixTreeCore", {"sessions": True}, -1),
        ("MambaRadixRustTreeCore", {"marconi_admission": "judicious"}, -1),
        ("MambaRadixRustTreeCore", {}, 0),
    ],
)
def test_the_rust_core_serves_wherever_it_can(core, arguments, cap):
    with server_context(max_states_per_path=cap):
        harness = TreeHarness(2, **{"core": "rust", **arguments})
    assert type(harness.cache.tree_core).__name__ == core
    assert harness.cache.marconi_state()["tree_core"] == core


def test_the_rust_core_refuses_a_host_tier_that_it_was_not_told_of():
    harness = TreeHarness(2, core="rust")
    params = CacheInitParams(False, harness.requests, harness.allocator, page_size=1)
    for tier in (LowerTier.BUFFER, LowerTier.LINKER):
        setup = replace(harness.cache.marconi, lower_tier=tier)
        assert f"below the device is {tier.value}" in python_core_reason(params, setup)
    with pytest.raises(NotImplementedError, match="host tier"):
        harness.cache.tree_core.set_hicache_enabled()


# -- determinism and interface


@on_both_cores
@pytest.mark.parametrize("options", [{}, {"marconi_evict_pools": "state"}])
def test_same_requests_same_victims(options):
    lives = []
    for _ in range(2):
        harness = TreeHarness(2, **options)
        random_life(harness, 5, 1500)
        lives.append(harness.victims)
    assert lives[0] == lives[1] and len(lives[0]) > 300


@on_both_cores
def test_evict_takes_tokens_and_evict_mamba_takes_states():
    harness = TreeHarness(2)
    for i in range(1, 6):
        harness.insert(sequence(10, i))
    kv, held = harness.held_by_tree()
    assert harness.cache.evict(10).num_tokens_evicted >= 10
    assert harness.held_by_tree()[0] <= kv - 10
    held = harness.held_by_tree()[1]
    assert harness.cache.evict_mamba(2).mamba_num_evicted == 2
    assert harness.held_by_tree()[1] == held - 2
    harness.check()


# -- forks, surviving ancestors, locks


@on_both_cores
def test_a_fork_is_evicted_only_when_nothing_else_is_left():
    harness = TreeHarness(2)
    fork = sequence(10, 1)
    harness.insert(fork)
    leaves = [fork + sequence(4, i) for i in (2, 3)]
    locks = []
    for leaf in leaves:
        harness.insert(leaf)
        locks.append(harness.lock(leaf))
    assert harness.cache.evict_mamba(1).mamba_num_evicted == 1, "progress while one is unlocked"
    assert harness.states() == {tuple(leaf) for leaf in leaves}
    for lock in locks:
        harness.unlock(lock)
    harness.check()


@on_both_cores
def test_saving_is_measured_from_the_surviving_state_above():
    harness = TreeHarness(2)
    inner, outer = sequence(20, 1), sequence(60, 1)
    harness.insert(inner)
    harness.insert(outer)
    node = harness.node(harness.match(outer).best_match_node)
    assert harness.cache.view.prefix(node).reuse_from == 20
    lock = harness.lock(outer)
    harness.cache.evict_mamba(1)
    harness.unlock(lock)
    assert harness.states() == {tuple(outer)}
    prefix = harness.cache.view.prefix(node)
    assert (prefix.reuse_from, prefix.segment_from, prefix.depth) == (0, 20, 60)
    assert harness.cache.marconi.savings.flops_saved(prefix) == COST.flops(0, 60)
    harness.check()


@on_both_cores
def test_a_locked_state_is_never_a_victim():
    harness = TreeHarness(2, state_slots=6)
    kept = sequence(12, 1)
    harness.insert(kept)
    lock = harness.lock(kept)
    for i in range(2, 30):
        harness.insert(sequence(5, i))
    assert harness.hit(kept) == 12
    harness.unlock(lock)
    harness.check()


# -- errors never reach the caller


@on_both_cores
@pytest.mark.parametrize("pool", ["state", "kv"])
def test_an_error_in_scoring_falls_back_to_lru_and_is_counted(pool, monkeypatch, caplog):
    harness, lru = TreeHarness(2), TreeHarness(1)
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


@on_both_cores
def test_the_log_says_what_happens_where_something_failed(monkeypatch, caplog):
    """Of LRU only where a victim is chosen: an operator goes by the line."""
    harness = TreeHarness(3)
    harness.insert(sequence(10, 1))
    cache = harness.cache

    def broken(*args, **kwargs):
        raise ZeroDivisionError

    for owner, name in (
        (cache._lookups, "take"),
        (cache._lookups, "returned"),
        (cache._lookups, "note_held"),
        (cache._waiting, "note"),
        (cache._client_hints, "closed"),
    ):
        monkeypatch.setattr(owner, name, broken)
    cache.count_request(None)
    cache.note_return(None)
    cache.note_held(None, 1)
    cache.note_queue([], matched=True)
    cache.release_session("a")
    assert cache.stats.errors == 5
    for line in (
        "counting a request failed, the counters leave it out; counted",
        "telling the policy of a return failed, it learns nothing from it; counted",
        "explaining a lookup failed, the counters leave it out; counted",
        "noting who waits failed, the policy goes by who waited before; counted",
        "taking a hint failed, the hint is ignored; counted",
    ):
        assert line in caplog.text
    assert "LRU" not in caplog.text
    monkeypatch.setattr(cache.view, "state_created", broken)
    harness.insert(sequence(10, 2))
    assert "event failed, SGLang's LRU decides until the tree is learnt anew" in caplog.text


@on_both_cores
def test_an_error_in_the_view_makes_decisions_lru_until_the_tree_is_learnt_anew(monkeypatch):
    harness = TreeHarness(2)
    harness.insert(sequence(10, 1))
    with monkeypatch.context() as patch:
        patch.setattr(harness.cache.view, "leaf_sets_updated", None)
        harness.insert(sequence(10, 2))
    assert not harness.cache.view.is_sound and harness.cache.stats.errors > 0
    harness.cache.evict_mamba(1)
    assert harness.states() == {tuple(sequence(10, 2))}
    assert harness.cache.stats.fallbacks["state"] == 1
    for _ in range(FIRST_RECOVERY):
        harness.insert(sequence(10, 2))
    assert harness.cache.view.is_sound and harness.cache.stats.view_rebuilds == 1
    harness.cache.stats.errors = 0
    harness.check()
    harness.cache.evict_mamba(1)
    assert harness.cache.stats.fallbacks["state"] == 1


@on_both_cores
def test_a_flush_ends_what_a_lost_event_began(monkeypatch):
    harness = TreeHarness(2)
    with monkeypatch.context() as patch:
        patch.setattr(harness.cache.view, "leaf_sets_updated", None)
        harness.insert(sequence(10, 2))
    assert not harness.cache.view.is_sound
    harness.cache.reset()
    assert harness.cache.view.is_sound and harness.cache.stats.view_rebuilds == 0


# -- why tokens were lost


def look_up(harness: TreeHarness, tokens: list[int]) -> dict[str, int]:
    """Lost tokens of one request, as the server counts them."""
    before = dict(harness.cache.stats.lost_tokens)
    req = SimpleNamespace(kv=ReqKvInfo(), rid="r", session=None, origin_input_ids=tokens)
    harness.match(tokens, req=req)
    harness.cache.count_request(req)
    after = harness.cache.stats.lost_tokens
    return {reason: count - before.get(reason, 0) for reason, count in after.items()}


@on_both_cores
def test_lost_tokens_are_told_apart_by_reason():
    harness = TreeHarness(1)
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
    assert look_up(harness, inner + sequence(30, 8)) == {**fresh, "state_evicted": 100}
    harness.cache.evict(100)
    assert look_up(harness, outer) == {**fresh, "kv_evicted": 200}
    assert look_up(harness, inner + sequence(30, 8)) == {**fresh, "kv_evicted": 100}
    assert harness.cache.stats.errors == 0


def test_the_state_shown_is_that_of_the_moment():
    harness = TreeHarness(2)
    for i in range(1, 4):
        harness.insert(sequence(10, i))
    shown = harness.cache.marconi_state()
    assert shown["cached_prefixes"] == 3 and shown["clock"] == harness.cache.view.now > 0
    assert shown["tree_core"] == "MambaRadixTreeCore" and shown["marconi_evict_policy"] == 2


@on_both_cores
def test_counters_of_victims_bytes_and_flops():
    harness = TreeHarness(2)
    inner, outer = sequence(20, 1), sequence(60, 1)
    harness.insert(inner)
    harness.insert(outer)
    lock = harness.lock(outer)
    harness.cache.evict_mamba(1)
    stats = harness.cache.stats
    assert stats.victims == {("state", "state_only"): 1}
    assert stats.bytes_evicted == COST.state_bytes and stats.flops_evicted == COST.flops(0, 20)
    harness.unlock(lock)
    harness.cache.evict(40)
    assert stats.victims["kv", "leaf_with_state"] == 1
    assert stats.kv_tokens_evicted == 40 and stats.states_evicted == 2
    assert stats.bytes_evicted == 2 * COST.state_bytes + 40 * COST.kv_bytes_per_token
    assert stats.flops_evicted == COST.flops(0, 20) + COST.flops(0, 60)
    assert stats.errors == 0


# -- HiCache write-back: the tree core pauses for a host backup and resumes


def write_back_harness(policy: int | None) -> TreeHarness:
    """Two conversations of two turns: interior states pause for a backup, leaves go whole."""
    harness = TreeHarness(policy)
    for first in (1, 2):
        harness.insert(sequence(20, first))
        harness.insert(sequence(60, first))
    core = harness.cache.tree_core
    core.enable_hicache = core.is_write_back = True
    return harness


def step(harness: TreeHarness, tracker: dict):
    """One step of the eviction walk in the state pool, freeing what it gave up."""
    result = harness.cache.tree_core.evict_device_next_node(MAMBA, tracker)
    harness.cache._apply_eviction_result(result)
    return result


@pytest.mark.parametrize("policy", [None, 1, 2])
def test_a_paused_victim_keeps_its_state_until_the_walk_is_resumed(policy):
    harness = write_back_harness(policy)
    core, tracker = harness.cache.tree_core, {FULL: 0, MAMBA: 0}
    core.evict_device_start(MAMBA, 1)
    paused = step(harness, tracker).mamba_backup_node_id
    assert path_tokens(core.node_by_id(paused)) == tuple(sequence(20, 1))
    assert core.get_component_device_value(paused, MAMBA) is not None
    resumed = core.finish_mamba_state_eviction(paused)
    harness.cache._apply_eviction_result(resumed)
    assert resumed.tracker[MAMBA] == 1
    core.evict_device_end(MAMBA)
    assert tuple(sequence(20, 1)) not in harness.states() and len(harness.states()) == 3


@pytest.mark.parametrize("policy", [None, 1, 2])
def test_a_victim_that_is_locked_while_paused_is_passed_over(policy):
    harness = write_back_harness(policy)
    core, tracker = harness.cache.tree_core, {FULL: 0, MAMBA: 0}
    core.evict_device_start(MAMBA, 1)
    paused = step(harness, tracker).mamba_backup_node_id
    lock = harness.cache.lock(paused)
    harness.cache._apply_eviction_result(core.finish_mamba_state_eviction(paused))
    following = step(harness, tracker)
    assert {following.mamba_backup_node_id, following.node_id} != {paused, None}
    core.evict_device_end(MAMBA)
    assert core.get_component_device_value(paused, MAMBA) is not None
    harness.unlock(lock)


@pytest.mark.parametrize("policy", [None, 1, 2])
@pytest.mark.parametrize("component", [FULL, MAMBA])
def test_a_walk_whose_backups_all_fail_offers_each_victim_once_and_ends(policy, component):
    harness = write_back_harness(policy)
    core, tracker = harness.cache.tree_core, {FULL: 0, MAMBA: 0}
    core.evict_device_start(component, 1000)
    offered = []
    for _ in range(20):
        result = core.evict_device_next_node(component, tracker)
        if result.mamba_backup_node_id is not None:
            core._pending_internal_evictions.clear()
            offered.append(result.mamba_backup_node_id)
        elif result.node_id is not None:
            offered.append(result.node_id)
        else:
            break
    core.evict_device_end(component)
    assert len(offered) == len(set(offered)) == (2 if component is FULL else 4)
    harness.check()


@on_both_cores
def test_a_price_that_fails_when_a_request_lets_go_costs_no_later_decision():
    harness = TreeHarness(2)
    prices = harness.cache.policy._candidates
    price, asked = prices._efficiency, []

    def fails(prefix):
        asked.append(prefix)
        raise ValueError("no price")

    prices._efficiency = fails
    harness.insert(sequence(20, 1))
    harness.insert(sequence(40, 1))
    assert asked, "nothing was settled"
    prices._efficiency = price
    harness.cache.evict_mamba(1)
    assert harness.cache.view.is_sound
    assert not harness.cache.stats.fallbacks and not harness.cache.stats.errors
    harness.check()


@on_both_cores
def test_a_price_that_always_fails_holds_nothing_else_up():
    """The prefix without a price stays behind the others, which the policy goes on to hear of."""
    harness = TreeHarness(2, kv_tokens=4096, state_slots=80)
    prices = harness.cache.policy._candidates
    price, bad = prices._efficiency, sequence(20, 1)

    def fails(prefix):
        if prefix.depth == len(bad):
            raise ValueError("no price")
        return price(prefix)

    prices._efficiency = fails
    harness.insert(bad)
    for seed in range(2, 60):
        harness.insert(sequence(40, seed))
    assert harness.cache.view.is_sound
    assert len(harness.cache.view._marked) <= 2
    harness.cache.evict_mamba(3)
    assert harness.cache.stats.fallbacks["state"] == 1, "LRU takes the one without a price first"
    harness.check()


@on_both_cores
@pytest.mark.parametrize("number", [2, 3])
def test_a_policy_that_cannot_forget_is_replaced_and_learns_the_tree_anew(number, monkeypatch):
    """What left is not kept for it either."""
    harness = TreeHarness(number)
    forgetful = harness.cache.policy

    def broken(prefix):
        raise KeyError("what left is not known")

    monkeypatch.setattr(forgetful, "on_remove", broken)
    was_sound = []
    for seed in range(40):
        harness.insert(sequence(40, seed))
        if seed > 20:
            harness.cache.evict(40)
        was_sound.append(harness.cache.view.is_sound)
    stats = harness.cache.stats
    assert not all(was_sound) and stats.errors > 0 and stats.fallbacks.total() > 0
    assert harness.cache.view.is_sound and stats.view_rebuilds == 1
    assert harness.cache.policy is not forgetful
    assert len(harness.cache.view._left) <= 1
    fallbacks, stats.errors = dict(stats.fallbacks), 0
    random_life(harness, 1, 60)
    assert dict(stats.fallbacks) == fallbacks
    harness.check()


@on_both_cores
def test_an_adopted_weight_stays_when_the_policy_is_made_anew(monkeypatch):
    harness = TreeHarness(2, marconi_eff_weight=0.0)
    cache = harness.cache
    random_life(harness, 1, 60)
    before = cache.policy
    cache.adopt(1.5)
    assert cache.policy is before and before.eff_weight == 1.5
    random_life(harness, 2, 60)
    harness.check()
    assert not cache.stats.errors and not cache.stats.fallbacks
    monkeypatch.setattr(before, "on_remove", lambda prefix: 1 / 0)
    cache.reset()
    assert cache.policy is not before and cache.policy.eff_weight == 1.5
    assert cache.view.is_sound and cache.marconi_state()["eff_weight"] == 1.5
