"""States and KV in one memory: SGLang's real unified pools on CPU tensors, and who goes first."""

from __future__ import annotations

import pytest
from lab.unified_pools import KV_BYTES
from sglang.srt.marconi_utils import ModelCost, pool_bytes
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.marconi.eviction.value import PrefixClass, ReuseOdds, Role, ValuePolicy
from tree_harness import TreeHarness, random_life, sequence, server_context

pytestmark = pytest.mark.usefixtures("context")

#: A state weighs as much as 20 tokens.
COST = ModelCost(a=10**6, b=100, kv_bytes_per_token=16, state_bytes=320)


@pytest.fixture(params=["python", "rust"])
def context(request, monkeypatch):
    """Ours stand on the tree core of the run; stock, which is watched, on the Python one."""
    monkeypatch.setattr(TreeHarness, "core_of_ours", request.param)
    with server_context():
        yield


def unified(policy: int | None, kv_tokens: int = 200, state_slots: int = 10, **options: object):
    options = {"cost": COST, **options}
    return TreeHarness(
        policy, kv_tokens=kv_tokens, state_slots=state_slots, elastic=True, **options
    )


def make_room_for_a_state(harness: TreeHarness) -> None:
    """An allocation that is one state short of what is free."""
    free = harness.requests.mamba_allocator.schedulable_available_size()
    slots = harness.alloc_state(free + 1)
    assert slots is not None
    harness.requests.mamba_allocator.free(slots)
    harness.check()


def make_room_for_kv(harness: TreeHarness, tokens: int = 1) -> None:
    """An allocation that is ``tokens`` short of what is free."""
    slots = harness.alloc_kv(harness.allocator.available_size() + tokens)
    assert slots is not None
    harness.allocator.free(slots)
    harness.check()


# -- the pools


def test_either_side_can_have_all_bytes_and_what_one_frees_the_other_gets():
    harness = unified(None)
    tokens = harness.allocator.available_size()
    assert tokens == 200 + 10 * 20
    assert harness.requests.mamba_allocator.schedulable_available_size() == tokens // 20
    kv = harness.alloc_kv(tokens - 15)
    assert kv is not None and harness.requests.mamba_allocator.alloc(1) is None
    harness.allocator.free(kv[:10])
    slot = harness.requests.mamba_allocator.alloc(1)
    assert slot is not None and harness.allocator.available_size() == 5
    harness.requests.mamba_allocator.free(slot)
    harness.allocator.free(kv[10:])
    assert harness.allocator.available_size() == tokens
    harness.check()


def test_bytes_are_read_off_pools_that_report_none():
    harness = unified(None)
    read = pool_bytes(harness.requests, harness.allocator.get_kvcache())
    assert read == (KV_BYTES, 20 * KV_BYTES)


# -- policy 1 is stock


@pytest.mark.parametrize("seed", range(2))
def test_policy_1_has_the_victims_of_stock_in_the_same_order(seed):
    stock, ours, rust = unified(None), unified(1), unified(None, core="rust")
    seen = random_life(stock, seed, 500)
    assert seen == random_life(ours, seed, 500) == random_life(rust, seed, 500)
    assert stock.victims == ours.victims
    assert len(stock.victims) > 100


def test_stock_gives_kv_where_states_are_short():
    """What policies 2 and 3 change: the state of 30 tokens is older than all KV leaves."""
    harness = unified(1)
    for length, which in ((30, 1), (60, 1), (40, 2)):
        harness.insert(sequence(length, which))
    make_room_for_a_state(harness)
    assert {path for _, path in harness.victims} == {tuple(sequence(60, 1))}


# -- policy 3: the lowest value per byte goes, from either side


class Odds(ReuseOdds):
    """Fixed rates by role."""

    def __init__(self, **rates: float) -> None:
        super().__init__()
        self._fixed = {Role(name): rate for name, rate in rates.items()}

    def rates_within(self, kind: PrefixClass, level: int) -> tuple[float, float]:
        return self._fixed[kind.role], 0.0


def value_harness(**rates: float) -> TreeHarness:
    """A session of two turns, which leaves a superseded state, and an older one of one turn.

    The second turn is short enough that its FLOPs per byte are of another power of two.
    """
    harness = unified(3)
    assert isinstance(harness.cache.policy, ValuePolicy)
    harness.cache.view.rebuild(ValuePolicy(COST, shared=True, odds=Odds(**rates)))
    harness.insert(sequence(40, 2))
    harness.insert(sequence(30, 1))
    harness.insert(sequence(50, 1))
    return harness


SHORTAGES = {"state": make_room_for_a_state, "kv": make_room_for_kv}


@pytest.mark.parametrize("short", SHORTAGES)
def test_a_state_goes_where_states_are_worth_less(short):
    harness = value_harness(resumable=1.0, superseded=0.01, fork=1.0)
    SHORTAGES[short](harness)
    assert harness.victims == [("MAMBA", tuple(sequence(30, 1)))]
    assert dict(harness.cache.stats.victims) == {(short, "state_only"): 1}


@pytest.mark.parametrize("short", SHORTAGES)
def test_a_leaf_of_kv_goes_where_it_is_worth_less(short):
    harness = value_harness(resumable=0.01, superseded=1.0, fork=1.0)
    SHORTAGES[short](harness)
    assert {path for _, path in harness.victims} == {tuple(sequence(50, 1))}
    assert dict(harness.cache.stats.victims) == {(short, "leaf_with_state"): 1}


def test_kv_from_which_nothing_resumes_goes_first():
    harness = unified(3)
    shared = sequence(20, 1)
    harness.insert(sequence(40, 2))
    lock = harness.lock(sequence(40, 2))
    for tail in (sequence(30, 3), sequence(25, 4)):
        harness.insert(shared + tail)
    harness.cache.evict(55)
    harness.unlock(lock)
    assert harness.states() == {tuple(sequence(40, 2))}
    harness.victims.clear()
    make_room_for_a_state(harness)
    assert harness.victims == [("FULL", tuple(shared))]


def test_value_is_per_byte_of_both_sides():
    """At equal odds the leaf that saves least for its KV and state together goes."""
    harness = unified(3)
    odds = Odds(resumable=1.0, superseded=1.0, fork=1.0)
    harness.cache.view.rebuild(ValuePolicy(COST, shared=True, odds=odds))
    short, long = sequence(15, 1), sequence(80, 2)
    harness.insert(long)
    harness.insert(short)
    make_room_for_a_state(harness)
    per_byte = {n: COST.flops(0, n) / (COST.state_bytes + 16 * n) for n in (15, 80)}
    assert per_byte[15] < per_byte[80]
    assert {path for _, path in harness.victims} == {tuple(short)}


# -- policy 2: one order over both sides, or SGLang's between them


def test_policy_2_orders_both_sides_by_one_score():
    harness = unified(2, marconi_eff_weight=2.0)
    harness.insert(sequence(80, 2))
    harness.insert(sequence(10, 1))
    harness.insert(sequence(60, 1))
    make_room_for_kv(harness)
    assert harness.victims == [("MAMBA", tuple(sequence(10, 1)))], "10 tokens for a state: least"


def test_policy_2_on_the_state_pool_leaves_to_sglang_which_side_gives():
    stock, ours = unified(1), unified(2, marconi_eff_weight=2.0, marconi_evict_pools="state")
    for harness in (stock, ours):
        for i in range(2, 9):
            harness.insert(sequence(90 - 10 * i, i))
        make_room_for_a_state(harness)
        make_room_for_kv(harness, 15)
    assert ours.victims == stock.victims != []
    for harness in (stock, ours):
        harness.cache.evict_mamba(1)
    assert ours.victims != stock.victims, "within the side it chooses"


# -- the guarantees


@pytest.mark.parametrize("policy", [2, 3])
def test_same_requests_same_victims(policy):
    lives = []
    for _ in range(2):
        harness = unified(policy, marconi_eff_weight=0.5) if policy == 2 else unified(3)
        random_life(harness, 5, 500)
        lives.append(harness.victims)
    assert lives[0] == lives[1] and len(lives[0]) > 100


@pytest.mark.parametrize("policy", [2, 3])
def test_it_evicts_to_the_last_unlocked_prefix_and_no_locked_one(policy):
    harness = unified(policy)
    kept = sequence(30, 1)
    harness.insert(kept)
    lock = harness.lock(kept)
    for i in range(2, 12):
        harness.insert(sequence(12, i))
    tokens = 200 + 10 * 20
    assert harness.alloc_kv(tokens) is None, "the locked prefix and its state have 50 of them"
    assert harness.held_by_tree() == (30, 1) and harness.hit(kept) == 30
    kv = harness.alloc_kv(tokens - 50)
    assert kv is not None
    harness.allocator.free(kv)
    harness.unlock(lock)
    assert harness.alloc_kv(tokens) is not None
    assert harness.held_by_tree() == (0, 0)


def test_states_on_a_locked_path_give_way_to_kv():
    """Stock would refuse the allocation: no KV leaf is left, but states are."""
    harness = unified(3)
    for length in (20, 40, 60):
        harness.insert(sequence(length, 1))
    lock = harness.lock(sequence(60, 1))
    kv = harness.alloc_kv(harness.allocator.available_size() + 40)
    assert kv is not None
    assert harness.states() == {tuple(sequence(60, 1))}
    harness.allocator.free(kv)
    harness.unlock(lock)
    harness.check()


@pytest.mark.parametrize("short", SHORTAGES)
def test_an_error_in_scoring_leaves_the_decision_to_sglang(short, monkeypatch):
    harness, stock = unified(3), unified(1)

    def broken(*args, **kwargs):
        raise ZeroDivisionError("a score that cannot be")

    monkeypatch.setattr(harness.cache.policy, "victim", broken)
    for h in (harness, stock):
        for i in range(1, 5):
            h.insert(sequence(8 * i, i))
            h.insert(sequence(8 * i + 8, i))
        SHORTAGES[short](h)
    assert harness.victims == stock.victims != []
    assert harness.cache.stats.fallbacks[short] > 0
    assert harness.cache.stats.fallbacks.total() == len({p for _, p in harness.victims})


def test_a_request_for_one_side_by_count_is_served_by_that_side():
    harness = unified(3)
    for i in range(1, 6):
        harness.insert(sequence(10, i))
        harness.insert(sequence(20, i))
    assert harness.cache.evict_mamba(3).mamba_num_evicted == 3
    before = harness.held_by_tree()
    assert harness.cache.evict(EvictParams(num_tokens=25)).num_tokens_evicted >= 25
    assert harness.held_by_tree()[0] <= before[0] - 25
    harness.check()


def test_memory_of_their_own_is_not_taken_for_shared():
    assert not TreeHarness(3).cache.marconi.shared_memory
    assert unified(3).cache.marconi.shared_memory
