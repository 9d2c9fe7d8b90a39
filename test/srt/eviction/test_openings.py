"""Applications are told apart by what their sessions begin with, where that tells anything."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.costs import split_memory
from lab.shadow_world import hashed_requests
from policies.value import FadingEvidence, NoOpeningsPolicy
from sglang.srt.marconi_utils import cost_by_name
from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest
from sglang.srt.mem_cache.marconi.advice.replay import share_saved
from sglang.srt.mem_cache.marconi.eviction.value import ReuseOdds, Role, ValuePolicy
from sglang.srt.mem_cache.marconi.eviction.value.odds import (
    LEAST_POWER,
    LEVELS,
    OPENING_TELLING,
    SHARE_WEIGHT,
    prefix_class,
)
from sglang.srt.mem_cache.marconi.eviction.value.openings import ALONE, OPENINGS, Openings
from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.marconi.tuning.elastic_cache import ElasticShadowCache
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from test_value import RESUMABLE, LinearCost, prefix
from traces.generator import generate
from traces.generator.shapes import Sizes
from traces.timing import Timing

JOB, CHAT = (prefix_class(Role.RESUMABLE, opening=number) for number in (1, 2))


@given(st.lists(st.integers(0, 2 * OPENINGS), max_size=200))
def test_the_openings_of_late_have_numbers(ids):
    """Against a list of them, the least recent first."""
    openings = Openings()
    recent: list[tuple[int, int]] = []
    for id in ids:
        number, is_new = openings.number(id)
        known = [one for one in recent if one[0] == id]
        assert is_new is not bool(known)
        if known:
            recent.remove(known[0])
            assert number == known[0][1]
        elif len(recent) == OPENINGS:
            assert number == recent.pop(0)[1]
        recent.append((id, number))
        assert ALONE < number <= OPENINGS
        assert len({number for _, number in recent}) == len(recent)


def seen(odds: ReuseOdds, opening: int, level: int, *, of: int, used: int) -> None:
    """So many prefixes come to a level; some are used there, evenly, the others live on."""
    kind = prefix_class(Role.RESUMABLE, opening=opening)
    for number in range(of):
        odds.reached(kind, level)
        is_used = (number + 1) * used // of > number * used // of
        (odds.used if is_used else odds.survived)(kind, level)
    odds.renew()


def job_beside_chat() -> ReuseOdds:
    """What was seen where nothing of the job is used, and most of the chat."""
    odds = ReuseOdds()
    for _ in range(10):
        seen(odds, JOB.opening, 3, of=40, used=0)
        seen(odds, CHAT.opening, 3, of=10, used=8)
    return odds


def test_an_application_that_never_comes_back_has_odds_of_its_own():
    odds = job_beside_chat()
    assert odds.telling(JOB).power < 0
    assert odds.telling(CHAT) is RESUMABLE, "it is not raised above all"
    assert odds.chance(JOB, 3) < 0.05 < odds.chance(RESUMABLE, 3) == odds.chance(CHAT, 3)


def test_an_application_like_all_others_changes_nothing():
    odds, alike = ReuseOdds(), ReuseOdds()
    for _ in range(10):
        for opening in (JOB.opening, CHAT.opening, ALONE):
            seen(odds, opening, 3, of=10, used=4)
            seen(alike, ALONE, 3, of=10, used=4)
    for kind in (JOB, CHAT):
        assert odds.telling(kind) is RESUMABLE
        for level in range(LEVELS):
            assert odds.chance(kind, level) == alike.chance(RESUMABLE, level)


def test_a_hint_is_told_apart_from_an_opening():
    odds = job_beside_chat()
    hinted = prefix_class(Role.RESUMABLE, hint=Hint.SOON, opening=JOB.opening)
    assert hinted.unhinted is JOB
    assert hinted.of_all() is prefix_class(Role.RESUMABLE, hint=Hint.SOON)
    assert odds.telling(hinted) is odds.telling(JOB) is not RESUMABLE
    assert odds.chance(hinted, 3) == odds.chance(JOB, 3)


def test_a_hint_and_an_opening_tell_together():
    odds = job_beside_chat()
    hinted = prefix_class(Role.RESUMABLE, hint=Hint.LAST, opening=JOB.opening)
    for _ in range(10):
        odds.told(CHAT, 3, Hint.LAST)
    odds.renew()
    power = odds.telling(JOB).power
    assert odds.telling(hinted) is prefix_class(Role.RESUMABLE, hint=Hint.LAST).of_all(power)
    assert odds.chance(hinted, 3) < odds.chance(JOB, 3)
    assert odds.chance(hinted, 3) == pytest.approx(odds._hinted_chances(hinted)[3])


@pytest.mark.parametrize("age", [0, 20, 1000])
def test_what_never_comes_back_is_worth_less_at_every_age(age):
    odds = job_beside_chat()
    assert odds.rate(JOB, age) < odds.rate(CHAT, age) / 4
    assert odds.ever(JOB, 3) < odds.ever(CHAT, 3) / 4


def test_a_number_given_anew_begins_without_evidence():
    odds = job_beside_chat()
    for _ in range(10):
        seen(odds, 3, 3, of=40, used=0)
        seen(odds, CHAT.opening, 3, of=10, used=8)
    assert odds.telling(JOB) is not RESUMABLE
    odds.forget_opening(JOB.opening)
    assert odds.telling(JOB) is RESUMABLE
    odds.renew()
    assert odds.telling(JOB) is RESUMABLE
    assert odds.telling(prefix_class(Role.RESUMABLE, opening=3)).power < 0


def test_only_what_sessions_resume_at_is_told_apart():
    for role in (Role.SUPERSEDED, Role.FORK):
        assert prefix_class(role, opening=3) is prefix_class(role)


def test_a_run_of_what_is_told_apart_changes_nothing_for_the_others():
    odds = job_beside_chat()
    before = odds.chance(RESUMABLE, 3)
    seen(odds, JOB.opening, 3, of=500, used=0)
    assert odds.chance(RESUMABLE, 3) == before
    assert odds.telling(JOB).power < 0
    seen(odds, JOB.opening, 3, of=200, used=160)
    assert odds.telling(JOB) is RESUMABLE, "it is used like the chat now"
    seen(odds, JOB.opening, 3, of=500, used=0)
    assert odds.chance(RESUMABLE, 3) < before


def test_a_change_of_all_tells_none_apart():
    odds, kinds = ReuseOdds(), [prefix_class(Role.RESUMABLE, opening=n) for n in range(1, 11)]

    def prefixes(rounds: int, used_in: Callable[[int], bool]) -> None:
        for number in range(rounds):
            for kind in kinds:
                odds.reached(kind, 3)
                if used_in(number):
                    odds.used(kind, 3)
            odds.renew()
            assert {odds.telling(kind) for kind in kinds} == {RESUMABLE}

    prefixes(300, lambda number: number % 20 == 0)
    assert odds.chance(RESUMABLE, 3) < 0.1
    prefixes(40, lambda number: number % 4 > 0)
    assert odds.chance(RESUMABLE, 3) > 0.5
    prefixes(300, lambda number: number % 20 == 0)
    assert odds.chance(RESUMABLE, 3) < 0.1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reached", "used", "survived", "lost", "forget"]),
            st.sampled_from([ALONE, 1, 2]),
            st.integers(0, 3),
            st.integers(1, 12),
        ),
        max_size=40,
    )
)
def test_odds_of_openings_are_those_of_a_recount(events):
    """Against a log that is added up when asked; nothing in it is dropped."""
    odds = ReuseOdds(FadingEvidence)
    noted: list[tuple[int, int, float, float]] = []
    forgotten: list[tuple[int, int, float, float]] = []
    for opening, uses in ((1, 0), (2, 90)):
        kind = prefix_class(Role.RESUMABLE, opening=opening)
        for number in range(150):
            odds.reached(kind, 2)
            noted.append((opening, 2, 1, 0))
            if number < uses:
                odds.used(kind, 2)
                noted.append((opening, 2, 0, 1))
    for what, opening, level, times in events:
        kind = prefix_class(Role.RESUMABLE, opening=opening)
        if what == "forget":
            odds.forget_opening(opening)
            forgotten += [entry for entry in noted if entry[0] == opening]
            noted = [entry for entry in noted if entry[0] != opening]
            continue
        for _ in range(times):
            if what == "reached":
                odds.reached(kind, level)
                noted.append((opening, level, 1, 0))
            elif what == "survived":
                odds.survived(kind, level)
                noted.append((opening, level + 1, 1, 0))
            elif what == "used":
                odds.used(kind, level)
                noted.append((opening, level, 0, 1))
            else:
                # Of what never came there is none to lose.
                odds.reached(kind, level)
                odds.lost_sight(kind, level)
                noted.append((opening, level, 0.5, 0))
    odds.renew()
    plain = [odds.chance(RESUMABLE, level) for level in range(LEVELS)]
    came, used = zip(*(_at(level, noted + forgotten) for level in range(LEVELS)), strict=True)
    for opening in (ALONE, 1, 2):
        own = [_at(level, [e for e in noted if e[0] == opening]) for level in range(LEVELS)]
        likely = [
            mine * of_all / all_came if all_came else 0
            for (mine, _), all_came, of_all in zip(own, came, used, strict=True)
        ]
        found = sum(uses for _, uses in own)
        variance = sum(
            uses * (1 + mine / all_came)
            for uses, (mine, _), all_came in zip(likely, own, came, strict=True)
            if uses
        )
        tells = sum(likely) - found > OPENING_TELLING * variance**0.5
        share = (found + SHARE_WEIGHT) / (sum(likely) + SHARE_WEIGHT)
        power = next(p for p in (0, -1, -2, LEAST_POWER) if share >= 4**p / 2 or p == LEAST_POWER)
        power = power if tells else 0
        kind = prefix_class(Role.RESUMABLE, opening=opening)
        assert odds.telling(kind) is RESUMABLE.of_all(power)
        for level in range(6):
            assert odds.chance(kind, level) == pytest.approx(plain[level] * 4.0**power)


def _at(level: int, noted: list[tuple[int, int, float, float]]) -> tuple[float, float]:
    """How many came to a level, at least those that were used there, and these."""
    at = [entry for entry in noted if entry[1] == level]
    used = sum(entry[3] for entry in at)
    return max(sum(entry[2] for entry in at), used), used


def test_a_session_keeps_its_opening_whatever_follows():
    policy = ValuePolicy(LinearCost())
    system = prefix(1, depth=10, children=2)
    policy.on_insert(system, 1)
    first = prefix(2, reuse_from=10, reuse_id=1, last_access=2)
    policy.on_insert(first, 2)
    opening = policy.explain(first, Pool.STATE).kind.opening
    assert opening not in (None, ALONE)
    policy.on_hit(first, 3)
    first.children, first.last_access = 1, 3
    policy.on_change(first)
    second = prefix(3, depth=200, reuse_from=100, reuse_id=2, last_access=4)
    policy.on_insert(second, 4)
    assert policy.explain(first, Pool.STATE).kind.opening is None, "it is superseded"
    assert policy.explain(second, Pool.STATE).kind.opening == opening
    # What a session itself comes back to twice lies below an opening, and is none.
    second.children = 2
    policy.on_change(second)
    branch = prefix(4, depth=300, reuse_from=200, reuse_id=3, last_access=5)
    policy.on_insert(branch, 5)
    assert policy.explain(branch, Pool.STATE).kind.opening == opening
    first.children = 0
    policy.on_change(first)
    assert policy.explain(first, Pool.STATE).kind.opening == opening
    alone = prefix(5, last_access=6)
    policy.on_insert(alone, 6)
    assert policy.explain(alone, Pool.STATE).kind.opening == ALONE


def blocks(requests: list[list[int]]) -> list[array[int]]:
    mask = 2**64 - 1
    return [
        array("Q", (hash(tuple(ids[: end + 1])) & mask for end in range(len(ids))))
        for ids in requests
    ]


def test_more_openings_than_are_told_apart_are_forgotten():
    policy = ValuePolicy(LinearCost())
    forgotten = []
    policy.odds.forget_opening = forgotten.append
    cache = ShadowCache(ShadowShape(1, 4000, 400, 1, 1), policy)
    asked = [[opening, opening, 1000 + turn] for turn in range(20) for opening in range(100)]
    for id, hashes in enumerate(blocks(asked)):
        cache.begin(id, hashes, len(hashes) + 1)
        cache.end(id, array("Q", []))
    assert len(policy._openings._numbers) == OPENINGS
    assert len(forgotten) > OPENINGS
    assert set(forgotten) == set(range(ALONE + 1, OPENINGS + 1))


def test_a_session_that_comes_back_to_its_own_history_is_alone():
    policy = ValuePolicy(LinearCost())
    first = prefix(1)
    policy.on_insert(first, 1)
    policy.on_hit(first, 2)
    first.children, first.last_access = 1, 2
    policy.on_change(first)
    second = prefix(2, depth=200, reuse_from=100, reuse_id=1, last_access=3)
    policy.on_insert(second, 3)
    second.children = 2
    policy.on_change(second)
    branch = prefix(3, depth=300, reuse_from=200, reuse_id=2, last_access=4)
    policy.on_insert(branch, 4)
    assert policy.explain(branch, Pool.STATE).kind.opening == ALONE


COST = cost_by_name("Qwen3-Next-80B-A3B-Instruct")
BLOCK, GIB = 64, 6


@pytest.fixture(scope="module")
def beside_a_job() -> list[HashedRequest]:
    """Chats, and a job whose prompts share an instruction and come once each."""
    sizes, timing = Sizes(groups=2, question=1024), Timing(seed=3)
    mix = {"chat": 1, "shared-prefix": 3}
    made = generate(mix, sessions=600, timing=timing, block=BLOCK, sizes=sizes)
    return list(hashed_requests(made, BLOCK))


@pytest.mark.parametrize("shared", [False, True])
def test_a_job_that_never_comes_back_leaves_the_room_to_others(beside_a_job, shared):
    def saved(policy: ValuePolicy) -> float:
        kv_tokens, slots = split_memory(GIB, 0.9, COST)
        shape = ShadowShape(BLOCK, kv_tokens // BLOCK, slots, 128, 4)
        if not shared:
            return share_saved(ShadowCache(shape, policy), beside_a_job, COST)
        cache = ElasticShadowCache(shape, policy, COST, GIB * 2**30)
        return share_saved(cache, beside_a_job, COST)

    alike = saved(NoOpeningsPolicy(COST, shared=shared))
    assert saved(ValuePolicy(COST, shared=shared)) >= alike + 0.01
