"""Policy 3: odds of reuse against a recount, victims against a scan, and whole streams."""

from __future__ import annotations

from array import array
from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies.value import FadingEvidence
from sglang.srt.mem_cache.marconi.config import MarconiConfig, MarconiConfigError
from sglang.srt.mem_cache.marconi.eviction.lru import LruPolicy
from sglang.srt.mem_cache.marconi.eviction.registry import create_policy
from sglang.srt.mem_cache.marconi.eviction.savings import SurvivingSavings
from sglang.srt.mem_cache.marconi.eviction.value.evidence import LEVELS, MEMORY, Evidence
from sglang.srt.mem_cache.marconi.eviction.value.expectations import TICKS_A_TURN, Turns
from sglang.srt.mem_cache.marconi.eviction.value.observations import Observations
from sglang.srt.mem_cache.marconi.eviction.value.odds import (
    CLASS_PRIOR_WEIGHT,
    COHORT_TICKS,
    FIRST_AGES,
    FORESEEN,
    PRIOR,
    PRIOR_WEIGHT,
    SUPERSEDED_SHARE,
    WIDTHS,
    PrefixClass,
    ReuseOdds,
    Role,
    level_of,
    prefix_class,
)
from sglang.srt.mem_cache.marconi.eviction.value.openings import ALONE
from sglang.srt.mem_cache.marconi.eviction.value.policy import ValuePolicy
from sglang.srt.mem_cache.marconi.eviction.value.queues import _first_since
from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape


class LinearCost:
    """A FLOP a token; a state weighs as much as eight tokens."""

    kv_bytes_per_token = 1.0
    state_bytes = 8.0

    def flops(self, start: int, end: int) -> float:
        return float(end - start)


def prefix(id: int, **changes: int | bool) -> CachedPrefix:
    fields = {
        "id": id,
        "order": id,
        "depth": 100,
        "segment_from": 0,
        "exclusive_from": 0,
        "reuse_from": 0,
        "children": 0,
        "has_state": True,
        "is_leaf": True,
        "state_locked": False,
        "last_access": 0,
    }
    return CachedPrefix(**{**fields, **changes})


def test_levels_double():
    ages = [COHORT_TICKS * cohorts for cohorts in (0, 1, 2, 3, 4, 1023, 1024)]
    assert [level_of(age) for age in ages] == [0, 1, 2, 2, 3, 10, 11]
    assert level_of(COHORT_TICKS - 1) == 0 and level_of(2 * COHORT_TICKS - 1) == 1
    assert level_of(1 << 60) == LEVELS - 1
    for level in range(1, LEVELS):
        assert level_of(FIRST_AGES[level]) == level == level_of(FIRST_AGES[level] - 1) + 1


RESUMABLE = prefix_class(Role.RESUMABLE)
#: The same, as the policy watches it where its session shares no opening.
FRESH = prefix_class(Role.RESUMABLE, opening=ALONE)


def test_a_later_use_comes_at_one_of_the_next_levels():
    odds = ReuseOdds()
    for level in range(LEVELS - 1):
        for number in range(200):
            odds.reached(RESUMABLE, level)
            if number < 10 * (level % 3):
                odds.used(RESUMABLE, level)
    odds.renew()
    for level in (0, 3, LEVELS - 3):
        unused = 1.0
        for ahead in range(level, min(level + FORESEEN, LEVELS)):
            unused *= 1 - odds.chance(RESUMABLE, ahead)
        assert odds.ever(RESUMABLE, level) == pytest.approx(1 - unused)


def test_a_superseded_state_is_worth_a_copy_where_such_are_used():
    policy = ValuePolicy(LinearCost())
    policy.order_host()
    kinds = {"tail": 0, "superseded": 1, "fork": 2}
    prefixes = {name: prefix(n + 1, children=n, is_leaf=n == 0) for name, n in kinds.items()}
    for one in prefixes.values():
        policy.on_insert(one, 1)
    worth = {name for name, one in prefixes.items() if policy.is_worth_backup(one)}
    assert worth == {"tail", "fork"}
    superseded = prefix_class(Role.SUPERSEDED)
    for _ in range(400):
        policy.odds.reached(superseded, 0)
        policy.odds.used(superseded, 0)
    policy.odds.renew()
    assert policy.is_worth_backup(prefixes["superseded"]), "agents here rewrite their history"


@pytest.mark.parametrize("role", Role)
def test_without_evidence_value_falls_with_age(role):
    odds = ReuseOdds()
    ages = (COHORT_TICKS * cohorts // 2 for cohorts in (1, 2, 3, 4, 6, 100, 1000, 1 << 24))
    rates = [odds.rate(prefix_class(role), age) for age in ages]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1] > 0
    superseded = prefix_class(Role.SUPERSEDED)
    assert odds.rate(RESUMABLE, FIRST_AGES[7]) > odds.rate(superseded, FIRST_AGES[2])


def test_a_class_counts_only_so_far():
    assert prefix_class(Role.FORK, uses=7, turns=3) is prefix_class(Role.FORK, uses=2, turns=2)
    assert prefix_class(Role.FORK, uses=1) is not prefix_class(Role.FORK)


def test_a_use_that_comes_late_makes_older_prefixes_worth_more():
    odds = ReuseOdds()
    kind = RESUMABLE
    for _ in range(2000):
        odds.reached(kind, 0)
        for level in range(10):
            odds.survived(kind, level)
        odds.used(kind, 10)
    odds.renew()
    late, middle, early, after = (FIRST_AGES[level] for level in (10, 9, 6, 12))
    assert odds.rate(kind, late) > odds.rate(kind, middle) > odds.rate(kind, early)
    assert odds.rate(kind, early) > odds.rate(kind, after)
    assert odds.chance(kind, 10) > 0.9 and odds.chance(kind, 5) < 0.05


def test_rates_are_those_of_the_first_question_whichever_level_is_asked_about_later():
    def learnt() -> ReuseOdds:
        odds = ReuseOdds()
        for level in range(LEVELS - 1):
            for number in range(50):
                odds.reached(RESUMABLE, level)
                if number < 10 * (level % 4):
                    odds.used(RESUMABLE, level)
        return odds

    odds, asked_at_once = learnt(), learnt()
    rates = [asked_at_once.rates_within(RESUMABLE, level) for level in range(LEVELS)]
    for level, (start, growth) in enumerate(rates[:-1]):
        assert start + WIDTHS[level] * growth == pytest.approx(rates[level + 1][0])
    assert odds.rates_within(RESUMABLE, 0) == rates[0]
    for level in range(LEVELS):
        odds.used(RESUMABLE, level)
    assert [odds.rates_within(RESUMABLE, level) for level in range(LEVELS)] == rates
    odds.renew()
    assert odds.rates_within(RESUMABLE, 0) != rates[0]


def test_chances_are_shares_of_those_that_came_so_far():
    odds = ReuseOdds()
    kind = prefix_class(Role.FORK)
    for watched in range(60):
        odds.reached(kind, 3)
        if watched % 3 == 0:
            odds.used(kind, 3)
        elif watched % 3 == 1:
            odds.survived(kind, 3)
        else:
            odds.lost_sight(kind, 3)

    def share(expected: float, weight: float = PRIOR_WEIGHT) -> float:
        return (20 + weight * expected) / (50 + weight)

    # 20 more came to level 4.
    mean = (20 + PRIOR_WEIGHT * PRIOR) / (70 + PRIOR_WEIGHT)
    assert odds.chance(kind, 3) == pytest.approx(share(share(share(mean)), CLASS_PRIOR_WEIGHT))


def test_what_was_not_seen_is_expected_to_be_like_what_is_closest():
    odds = ReuseOdds()
    once, never = prefix_class(Role.FORK, uses=1), prefix_class(Role.FORK)
    superseded = prefix_class(Role.SUPERSEDED)
    assert odds.chance(superseded, 4) == pytest.approx(PRIOR * SUPERSEDED_SHARE)
    for _ in range(5000):
        odds.reached(once, 4)
        odds.used(once, 4)
        odds.reached(once, 5)
        odds.survived(once, 5)
    assert odds.chance(never, 4) > 0.95 and odds.chance(never, 5) < 0.05
    assert odds.chance(RESUMABLE, 4) > 0.95
    assert 0.2 < odds.chance(RESUMABLE, 20) < 0.5
    assert odds.chance(superseded, 4) == pytest.approx(SUPERSEDED_SHARE, rel=0.1)


@pytest.mark.parametrize("evidence", [Evidence, FadingEvidence])
def test_old_evidence_gives_way(evidence):
    odds = ReuseOdds(evidence)
    for _ in range(10 * MEMORY):
        odds.reached(RESUMABLE, 4)
        odds.used(RESUMABLE, 4)
    for _ in range(2 * MEMORY):
        odds.reached(RESUMABLE, 4)
        odds.survived(RESUMABLE, 4)
    assert odds.chance(RESUMABLE, 4) < 0.1


def test_superseded_states_go_first_and_else_the_least_recent():
    policy = ValuePolicy(LinearCost())
    for id, children in enumerate((0, 1, 0, 0, 1)):
        policy.on_insert(prefix(id, children=children, is_leaf=not children), now=id)
        policy._watched[id].stamp = id
    order = []
    while (victim := policy.victim(Pool.STATE, 1000)) is not None:
        order.append(victim.id)
        policy.on_remove(victim)
    assert order == [1, 4, 0, 2, 3]


def test_what_costs_the_same_power_of_two_goes_by_last_use():
    policy = ValuePolicy(LinearCost())
    for id, depth in enumerate((100, 70, 60)):
        policy.on_insert(prefix(id, depth=depth, last_access=id), now=id)
    order = []
    while (victim := policy.victim(Pool.STATE, 3)) is not None:
        order.append(victim.depth)
        policy.on_remove(victim)
    # Of 12.5, 8.75 and 7.5 FLOPs a byte the first two are from 8 to 16.
    assert order == [60, 100, 70]


def test_a_prefix_without_state_goes_first_from_the_kv_pool():
    policy = ValuePolicy(LinearCost())
    policy.on_insert(prefix(1), now=1)
    policy.on_insert(prefix(2, has_state=False), now=2)
    victim = policy.victim(Pool.KV, 3)
    assert victim is not None and victim.id == 2
    assert policy.explain(victim, Pool.KV).value == 0


def test_it_explains_itself():
    policy = ValuePolicy(LinearCost())
    known = prefix(1, reuse_from=40, exclusive_from=60)
    policy.on_insert(known, now=10)
    worth = policy.explain(known, Pool.KV)
    assert (worth.kind, worth.age, worth.flops, worth.bytes) == (
        FRESH,
        10,
        60.0,
        40.0,
    )
    assert worth.value == pytest.approx(worth.rate * 60 / 40)
    assert policy.explain(known, Pool.STATE).bytes == LinearCost.state_bytes


def test_a_return_to_an_evicted_state_counts_as_a_use():
    policy = ValuePolicy(LinearCost())
    level = level_of(40)
    before = policy.odds.chance(RESUMABLE, level)
    for id in range(1, 40):
        known = prefix(id, last_access=id * 100)
        policy.on_insert(known, id * 100)
        policy.on_remove(known)
        policy.on_return(id, id * 100 + 40)
        policy.on_return(id, id * 100 + 50)
    assert policy.odds.chance(RESUMABLE, level) > before + 0.2


def test_what_nobody_will_tell_of_says_nothing_of_later_ages():
    forgetting, watching = ValuePolicy(LinearCost()), ValuePolicy(LinearCost())
    for policy in (forgetting, watching):
        for id in range(1, 40):
            known = prefix(id, last_access=id * 100)
            policy.on_insert(known, id * 100)
            policy.on_remove(known)
            if policy is forgetting:
                policy.on_forgotten(id)
        policy.on_insert(prefix(50, last_access=10_000), 10_000)
    level = level_of(1000)
    assert watching.odds.chance(RESUMABLE, level) < PRIOR / 2
    assert forgetting.odds.chance(RESUMABLE, level) > watching.odds.chance(RESUMABLE, level) * 1.2
    forgetting.on_forgotten(1)
    forgetting._check()


def test_where_prefixes_parted_stays_a_fork_while_its_state_is_cached():
    policy = ValuePolicy(LinearCost())
    known = prefix(1, last_access=1)
    policy.on_insert(known, 1)
    for children, role in ((1, Role.SUPERSEDED), (2, Role.FORK), (1, Role.FORK), (0, Role.FORK)):
        known.children, known.is_leaf = children, not children
        policy.on_change(known)
        assert policy.explain(known, Pool.STATE).kind.role is role
    known.last_access = 5
    policy.on_hit(known, 5)
    policy.on_change(known)
    assert policy.explain(known, Pool.STATE).kind is prefix_class(Role.FORK, uses=1)
    known.has_state = False
    policy.on_change(known)
    known.has_state = True
    policy.on_change(known)
    assert policy.explain(known, Pool.STATE).kind is FRESH


def test_a_session_is_told_by_its_turns_from_a_prompt_that_many_share():
    policy = ValuePolicy(LinearCost())
    system = prefix(1, depth=10)
    policy.on_insert(system, 1)
    now = 1
    for session in range(2, 5):
        now += 1
        system.last_access, system.children = now, session - 1
        policy.on_hit(system, now)
        tail = prefix(session, reuse_from=10, reuse_id=1, last_access=now)
        policy.on_insert(tail, now)
    assert policy.explain(system, Pool.STATE).kind is prefix_class(Role.FORK, uses=2)
    assert policy.explain(tail, Pool.STATE).kind is prefix_class(Role.RESUMABLE, opening=1)
    for turn in range(1, 4):
        now += 1
        tail.last_access, tail.children, tail.is_leaf = now, 1, False
        policy.on_hit(tail, now)
        above, tail = tail, prefix(10 + turn, reuse_id=tail.id, last_access=now)
        policy.on_insert(tail, now)
        kind = policy.explain(tail, Pool.STATE).kind
        assert kind is prefix_class(Role.RESUMABLE, turns=turn, opening=1)
        assert policy.explain(above, Pool.STATE).kind.role is Role.SUPERSEDED


#: Kind of event, id of the prefix, a number that the event needs.
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["insert", "hit", "change", "lock", "drop", "remove", "evict", "wait", "queue", "hint"]
        ),
        st.integers(0, 12),
        st.integers(0, 40),
    ),
    max_size=120,
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(EVENTS)
def test_victims_are_those_of_a_scan(events):
    policy = ValuePolicy(LinearCost())
    cached: dict[int, CachedPrefix] = {}
    now = order = 0
    for kind, id, number in events:
        now += 1 + (number if kind == "wait" else 0)
        known = cached.get(id)
        if kind == "insert" and known is None:
            order += 1
            cached[id] = prefix(
                id,
                order=order,
                depth=50 + number,
                reuse_from=number,
                exclusive_from=number,
                children=number % 3,
                is_leaf=number % 3 == 0,
                has_state=number % 4 != 0 or number % 3 != 0,
                last_access=now,
            )
            policy.on_insert(cached[id], now)
        elif known is not None and kind == "hit" and known.has_state:
            known.last_access = now
            policy.on_hit(known, now)
        elif known is not None and kind in ("change", "lock", "drop"):
            known.children = number % 3 if kind == "change" else known.children
            known.is_leaf = known.children == 0 and kind != "lock"
            known.state_locked = kind == "lock"
            known.has_state = known.has_state and kind != "drop"
            policy.on_change(known)
        elif known is not None and kind == "remove":
            policy.on_remove(cached.pop(id))
        elif kind == "queue":
            queue = [(id + step) % 13 if step % 3 else None for step in range(number % 9)]
            policy.on_queue(queue, now)
        elif kind == "hint":
            policy.on_hint(id, list(Hint)[number % len(Hint)])
        policy._check()
        for pool in Pool:
            able = [p for p in cached.values() if p.may_leave(pool)]
            for excluding in ((), (id,)):
                victim = policy.victim(pool, now, excluding)
                left = [p for p in able if p.id not in excluding]
                assert (victim is None) == (not left)
                if victim is None:
                    continue
                assert victim in left
                worth = policy.explain(victim, pool).value
                assert worth == min(_heads(policy, left, pool).values())


def _heads(policy: ValuePolicy, left: list[CachedPrefix], pool: Pool) -> dict[object, float]:
    """Value of the least recently used prefix of every class and cost, at every level of age.

    A queue's levels are those of its bands; what has grown since counts with the
    deepest of them that is not above its age.
    """
    heads: dict[object, tuple[tuple[int, int], float]] = {}
    for candidate in left:
        entry = policy._queues[pool].get(candidate.id)
        if entry is None:
            assert candidate.id in policy._turns
            key = ("expected", candidate.id)
            heads[key] = (0, 0), policy.explain(candidate, pool).value
            continue
        place = (entry.stamp, candidate.order)
        worth = policy.explain(candidate, pool).value
        level = level_of(policy._now - entry.stamp)
        while level not in {band.level for band in entry.queue.bands}:
            level -= 1
        key = (*entry.queue.key, level)
        if key not in heads or place < heads[key][0]:
            heads[key] = place, worth
    return {key: worth for key, (_, worth) in heads.items()}


def waited_for(places: dict[int, int], length: int) -> list[int | None]:
    """A queue of so many requests, of which these places would resume at these prefixes."""
    by_place = {place: id for id, place in places.items()}
    return [by_place.get(place) for place in range(length)]


def test_what_the_next_in_the_queue_resumes_at_is_kept():
    policy = ValuePolicy(LinearCost())
    for id in (1, 2, 3):
        policy.on_insert(prefix(id, last_access=id), id)
    assert policy.victim(Pool.STATE, 10).id == 1, "the least recent"
    policy.on_queue(waited_for({1: 0, 3: 4}, 6), 10)
    assert policy.victim(Pool.STATE, 10).id == 2
    assert policy.victim(Pool.STATE, 10, {2}).id == 3, "whose turn is later"
    assert policy.explain(prefix(1), Pool.STATE).rate == 1 / TICKS_A_TURN
    policy.on_queue([], 11)
    assert policy.victim(Pool.STATE, 11).id == 1, "nobody waits any more"
    policy._check()


def test_a_turn_that_is_far_off_keeps_nothing_that_is_worth_little():
    policy = ValuePolicy(LinearCost())
    policy.on_insert(prefix(1, depth=2, last_access=1), 1)
    policy.on_insert(prefix(2, depth=2000, last_access=2), 2)
    policy.on_queue(waited_for({1: 100}, 101), 3)
    assert policy.victim(Pool.STATE, 3).id == 1


def test_an_expectation_ends_when_its_request_is_admitted():
    policy = ValuePolicy(LinearCost())
    first, second = prefix(1, last_access=1), prefix(2, last_access=2)
    policy.on_insert(first, 1)
    policy.on_insert(second, 2)
    policy.on_queue([1, 2], 3)
    assert policy.victim(Pool.STATE, 3).id == 2
    first.last_access = 4
    policy.on_hit(first, 4)
    assert policy.victim(Pool.STATE, 4).id == 1, "it has been used, and nobody waits for it now"
    policy._check()


def test_a_waiting_request_changes_its_level_a_few_times():
    turns, moves = Turns(), 0
    for served in range(128):
        _, moved = turns.change(range(served, 128))
        moves += len(moved)
    assert moves <= 128 * 9


class CountedOdds(ReuseOdds):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[tuple[str, PrefixClass, int], int] = {}

    def _note(self, what: str, kind: PrefixClass, level: int, count: int = 1) -> None:
        key = (what, kind, level)
        self.notes[key] = self.notes.get(key, 0) + count

    def reached(self, kind: PrefixClass, level: int) -> None:
        self._note("reached", kind, level)

    def survived(self, kind: PrefixClass, level: int, count: int = 1) -> None:
        self._note("survived", kind, level, count)

    def used(self, kind: PrefixClass, level: int) -> None:
        self._note("used", kind, level)

    def lost_sight(self, kind: PrefixClass, level: int) -> None:
        self._note("lost", kind, level)

    def told(self, kind: PrefixClass, level: int, hint: Hint | None) -> None:
        self._note(f"told {hint}", kind, level)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "use", "lose", "tell", "wait"]),
            st.integers(0, 9),
            st.integers(0, 99),
        ),
        max_size=80,
    )
)
def test_cohorts_tell_what_each_life_alone_would(events):
    """Against a twin that follows every watched by itself, tick by tick."""
    odds, twin = CountedOdds(), CountedOdds()
    lives = Observations(odds)
    followed: dict[int, tuple[PrefixClass, int]] = {}
    watched = {}
    now = 0

    def level_at(stamp: int, tick: int) -> int:
        return level_of((tick // COHORT_TICKS - stamp // COHORT_TICKS) * COHORT_TICKS)

    for what, id, number in events:
        if what == "wait":
            for tick in range(now + 1, now + number + 1):
                for kind, stamp in followed.values():
                    if level_at(stamp, tick) > level_at(stamp, tick - 1):
                        twin.survived(kind, level_at(stamp, tick - 1))
            now += number
            lives.advance(now)
        elif what == "begin" and id not in watched:
            stamp = max(now - number, 0)
            role = list(Role)[id % len(Role)]
            watched[id] = lives.begin(id, role, stamp, uses=id, opening=number % 3)
            followed[id] = prefix_class(role, id, 0, opening=number % 3), stamp
            twin.reached(followed[id][0], level_at(stamp, now))
        elif what in ("use", "lose") and id in watched:
            kind, stamp = followed.pop(id)
            report = twin.used if what == "use" else twin.lost_sight
            report(kind, level_at(stamp, now))
            (lives.use if what == "use" else lives.lose)(watched.pop(id))
        elif what == "tell" and id in watched:
            (kind, stamp), hint = followed[id], [None, *Hint][number % 7]
            twin.told(kind, level_at(stamp, now), hint)
            told = prefix_class(kind.role, kind.uses, kind.turns, hint, kind.opening)
            followed[id] = told, stamp
            lives.tell(watched[id], hint)
        assert odds.notes == twin.notes
    assert sum(sum(cohort.values()) for cohort in lives._alive.values()) == len(watched)


def test_time_that_nobody_lives_through_costs_nothing():
    lives = Observations(ReuseOdds())
    lives.advance(1 << 60)
    watched = lives.begin(1, Role.FORK, (1 << 60) + 1)
    lives.advance((1 << 60) + 100 * COHORT_TICKS)
    lives.lose(watched)
    assert not lives._alive


def test_queues_do_not_grow_with_time():
    policy = ValuePolicy(LinearCost())
    known = prefix(1)
    policy.on_insert(known, 0)
    for now in range(1, 5000):
        known.last_access = now
        policy.on_hit(known, now)
        policy.victim(Pool.KV, now)
    assert len(policy._queues[Pool.STATE]._queues) < 30
    assert len(policy._observations._alive) == 1
    for id in range(2, 5000):
        gone = prefix(id)
        policy.on_insert(gone, 5000 + id)
        policy.on_remove(gone)
    assert len(policy._evicted) <= 1024


def sessions(turns: int, live: int) -> list[tuple[list[int], int]]:
    """Sessions that take turns in a circle, each growing by a few blocks."""
    histories = {s: [s * 10000 + i for i in range(6)] for s in range(live)}
    requests = []
    for turn in range(turns):
        for s, history in histories.items():
            history += [s * 10000 + 100 + turn * 2, s * 10000 + 101 + turn * 2]
            requests.append((list(history), 1))
    return requests


def hit_blocks(policy, requests: list[tuple[list[int], int]], slots: int) -> int:
    cache = ShadowCache(ShadowShape(1, 100000, slots, 10000, 4), policy)
    hit = 0
    for id, (ids, _) in enumerate(requests):
        hashes = array("Q", [hash(tuple(ids[: i + 1])) & (2**64 - 1) for i in range(len(ids))])
        hit += cache.begin(id, hashes, len(ids) + 1)
        cache.end(id, array("Q", []))
    return hit


def test_more_live_sessions_than_memory_leave_some_of_them_cached():
    requests = sessions(turns=40, live=30)
    value = hit_blocks(ValuePolicy(LinearCost()), requests, slots=18)
    lru = hit_blocks(LruPolicy(), requests, slots=18)
    assert lru == 0
    assert value > sum(len(ids) for ids, _ in requests) // 10


def test_the_server_takes_it_by_number():
    config = MarconiConfig.from_options({"marconi_evict_policy": 3})
    assert config is not None and config.policy_name == "value" and not config.tunes
    policy = create_policy(config, SurvivingSavings(LinearCost()))
    assert isinstance(policy, ValuePolicy) and policy.pools == frozenset(Pool)
    with pytest.raises(MarconiConfigError, match=r"--marconi-eff-weight is 0\.5 but"):
        MarconiConfig.from_options({"marconi_evict_policy": 3, "marconi_eff_weight": 0.5})


stamps = st.lists(st.integers(0, 60), max_size=120).map(sorted)


@given(stamps, st.integers(0, 61), st.integers(0, 130))
def test_where_a_level_is_looked_for_first_does_not_change_what_is_found(stamps, stamp, near):
    assert _first_since(stamps, stamp, near) == bisect_left(stamps, stamp)
