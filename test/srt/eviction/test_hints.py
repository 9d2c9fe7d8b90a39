"""What is said of what follows a request: how it is read, and what policy 3 makes of it."""

from __future__ import annotations

import hashlib
import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.mem_cache.marconi.eviction.value.evidence import LEVELS
from sglang.srt.mem_cache.marconi.eviction.value.odds import (
    ENDED_SHARE,
    FEWEST_USES,
    TELLING,
    ReuseOdds,
    Role,
    prefix_class,
)
from sglang.srt.mem_cache.marconi.eviction.value.policy import MOST_HINTS, ValuePolicy
from sglang.srt.mem_cache.marconi.hints import Hint, Reading, read_hint
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from test_value import RESUMABLE, LinearCost, prefix

LAST = prefix_class(Role.RESUMABLE, hint=Hint.LAST)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NAMES = st.sampled_from(["marconi", "last", "returns_in", "other"])
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(ANYTHING)
def test_nothing_that_a_client_sends_raises(value):
    for given_params in (value, {"marconi": value}):
        reading = read_hint(given_params)
        assert not (reading.malformed and reading.hint)


@pytest.mark.parametrize(
    ("said", "reading"),
    [
        ({"last": True}, Reading(Hint.LAST)),
        ({"last": False}, Reading()),
        ({"returns_in": 0}, Reading(Hint.SOON)),
        ({"returns_in": 10.0}, Reading(Hint.SOON)),
        ({"returns_in": 10.5}, Reading(Hint.LATER)),
        ({"returns_in": 100}, Reading(Hint.LATER)),
        ({"returns_in": 10**400}, Reading(Hint.LONG)),
        ({}, Reading()),
        (None, Reading()),
        ({"last": 1}, Reading(malformed=True)),
        ({"lost": True}, Reading(malformed=True)),
        ({"returns_in": -1}, Reading(malformed=True)),
        ({"returns_in": True}, Reading(malformed=True)),
        ({"returns_in": float("inf")}, Reading(malformed=True)),
        ({"returns_in": float("nan")}, Reading(malformed=True)),
        ({"returns_in": "5"}, Reading(malformed=True)),
        ({"last": True, "returns_in": 5}, Reading(malformed=True)),
        (True, Reading(malformed=True)),
    ],
)
def test_a_hint_is_read_and_nothing_else(said, reading):
    assert read_hint({"marconi": said, "thinking_budget": 3}) == reading


def seen(odds: ReuseOdds, hint: Hint | None, level: int, *, of: int, used: int) -> None:
    """So many prefixes come to a level; some are used there, the others live on."""
    kind = prefix_class(Role.RESUMABLE, hint=hint)
    for number in range(of):
        odds.reached(RESUMABLE, level)
        if hint is not None:
            odds.told(RESUMABLE, level, hint)
        if number < used:
            odds.used(kind, level)
        else:
            odds.survived(kind, level)
        odds.renew()


def test_who_says_that_nothing_follows_is_believed_at_first():
    odds = ReuseOdds()
    odds.told(RESUMABLE, 0, Hint.LAST)
    for level in range(LEVELS):
        chance = odds.chance(RESUMABLE, level)
        assert odds.chance(LAST, level) == pytest.approx(chance * ENDED_SHARE, rel=0.5)
    for hint in (Hint.SOON, Hint.LATER, Hint.LONG, Hint.ABORTED):
        kind = prefix_class(Role.RESUMABLE, hint=hint)
        assert odds.chance(kind, 3) == odds.chance(RESUMABLE, 3), "what it means is to be learnt"


def test_a_hint_that_proves_wrong_soon_changes_nothing():
    odds, unhinted = ReuseOdds(), ReuseOdds()
    for _ in range(10):
        for hint in (None, Hint.LAST):
            seen(odds, hint, 3, of=10, used=5)
            seen(unhinted, None, 3, of=10, used=5)
    assert odds.telling(LAST) is RESUMABLE
    for level in range(LEVELS):
        assert odds.chance(LAST, level) == odds.chance(RESUMABLE, level)
        assert odds.chance(RESUMABLE, level) == unhinted.chance(RESUMABLE, level)


def test_a_hint_that_proves_right_tells_more_and_so_does_saying_nothing():
    odds = ReuseOdds()
    for _ in range(10):
        seen(odds, None, 3, of=10, used=9)
        seen(odds, Hint.LAST, 3, of=10, used=0)
    assert odds.telling(LAST) is LAST
    assert odds.chance(LAST, 3) < 0.05 < 0.7 < odds.chance(RESUMABLE, 3)


def test_a_hint_that_means_nothing_by_itself_is_learnt():
    odds = ReuseOdds()
    soon = prefix_class(Role.RESUMABLE, hint=Hint.SOON)
    for _ in range(20):
        seen(odds, None, 2, of=10, used=1)
        seen(odds, Hint.SOON, 2, of=10, used=9)
    assert odds.chance(soon, 2) > 3 * odds.chance(RESUMABLE, 2)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reached", "used", "survived", "lost", "told", "renew"]),
            st.sampled_from([None, Hint.LAST, Hint.SOON]),
            st.integers(0, 3),
        ),
        max_size=80,
    )
)
def test_odds_with_hints_are_those_of_a_recount(events):
    """Against uses and expectations that are kept as a list, and added up when asked."""
    odds = ReuseOdds()
    odds.told(RESUMABLE, 0, Hint.LAST)
    uses: list[tuple[Hint | None, int]] = []
    expected = [(None, 0, -odds.chance(RESUMABLE, 0)), (Hint.LAST, 0, odds.chance(RESUMABLE, 0))]
    odds.renew()
    plain = [odds.chance(RESUMABLE, level) for level in range(LEVELS)]
    for what, hint, level in events:
        kind = prefix_class(Role.RESUMABLE, hint=hint)
        if what == "reached":
            odds.reached(kind, level)
            expected.append((hint, level, plain[level]))
        elif what == "survived":
            odds.survived(kind, level)
            expected.append((hint, level + 1, plain[level + 1]))
        elif what == "used":
            odds.used(kind, level)
            uses.append((hint, level))
        elif what == "lost":
            odds.lost_sight(kind, level)
            expected.append((hint, level, -0.5 * plain[level]))
        elif what == "told":
            odds.told(RESUMABLE, level, hint)
            expected += [(None, level, -plain[level]), (hint, level, plain[level])]
        else:
            odds.renew()
            plain = [odds._chance(RESUMABLE, at, odds._mean()) for at in range(LEVELS)]
            odds._chances[RESUMABLE] = plain
        if what != "renew":
            odds._chances[RESUMABLE] = plain
    for hint in (None, Hint.LAST, Hint.SOON):
        kind = prefix_class(Role.RESUMABLE, hint=hint)
        shares = _recounted(uses, expected, hint)
        for level in range(6):
            chance = odds._chance(RESUMABLE, level, odds._mean()) * shares[level]
            assert odds.chance(kind, level) == pytest.approx(min(chance, 0.999))


def _recounted(uses, expected, hint) -> list[float]:
    def share(used: float, likely: float, weight: float, first: float) -> float:
        if (
            likely * first < FEWEST_USES
            or (used - likely * first) ** 2 <= TELLING**2 * likely * first
        ):
            return first
        return (used + weight * first) / (likely + weight)

    def found(level: int, of: tuple[Hint | None, ...]) -> float:
        return sum(said in of and at == level for said, at in uses)

    def awaited(level: int, of: Hint | None) -> float:
        return sum(number for said, at, number in expected if said is of and at == level)

    everybody = (None, Hint.LAST, Hint.SOON)
    levels = []
    for level in range(LEVELS):
        common = (found(level, everybody) + 2) / (
            max(sum(awaited(level, said) for said in everybody), 0) + 2
        )
        levels.append((found(level, (hint,)), max(awaited(level, hint), 0) * common))
    first = ENDED_SHARE if hint is Hint.LAST else 1.0
    used, likely = map(sum, zip(*levels, strict=True))
    at_all = share(used + 8 * first, likely + 8, 0.0, 1.0)
    return [share(*one, 2.0, at_all) for one in levels]


# -- the policy


def session(policy: ValuePolicy, length: int, *, shared: bool = False) -> list:
    """States of one session, each below the last; ``shared``: others part from the first."""
    states = []
    for id in range(1, length + 1):
        states.append(
            prefix(
                id,
                depth=10 * id,
                reuse_from=10 * (id - 1),
                exclusive_from=10 * (id - 1),
                reuse_id=id - 1 or None,
                children=(1 + (shared and id == 1)) if id < length else 0,
                is_leaf=id == length,
                last_access=id,
            )
        )
        policy.on_insert(states[-1], id)
    return states


def hints(policy: ValuePolicy, states: list) -> list[Hint | None]:
    policy.victim(Pool.STATE, policy._now)
    policy._check()
    return [policy.explain(state, Pool.STATE).kind.hint for state in states]


def test_the_end_of_a_session_is_that_of_what_leads_to_it_alone():
    policy = ValuePolicy(LinearCost())
    states = session(policy, 4, shared=True)
    policy.on_hint(4, Hint.LAST)
    assert hints(policy, states) == [None, Hint.LAST, Hint.LAST, Hint.LAST]


def test_another_hint_is_about_the_tail():
    policy = ValuePolicy(LinearCost())
    states = session(policy, 3)
    policy.on_hint(3, Hint.SOON)
    policy.on_hint(99, Hint.SOON)
    assert hints(policy, states) == [None, None, Hint.SOON]


def test_a_use_shows_that_the_session_goes_on():
    policy = ValuePolicy(LinearCost())
    states = session(policy, 3)
    policy.on_hint(3, Hint.LAST)
    assert hints(policy, states) == [Hint.LAST] * 3
    states[2].last_access = 9
    policy.on_hit(states[2], 9)
    assert hints(policy, states) == [None] * 3


def test_a_use_that_comes_before_the_hint_was_taken_in_voids_it():
    policy = ValuePolicy(LinearCost())
    states = session(policy, 2)
    policy.on_hint(2, Hint.LAST)
    states[1].last_access = 9
    policy.on_hit(states[1], 9)
    assert hints(policy, states) == [None, None]


def test_what_many_resume_at_is_nobodys_tail():
    policy = ValuePolicy(LinearCost())
    fork = prefix(1, children=3, is_leaf=False)
    popular = prefix(2)
    policy.on_insert(fork, 1)
    policy.on_insert(popular, 1)
    for now in (2, 3):
        popular.last_access = now
        policy.on_hit(popular, now)
    for id in (1, 2):
        policy.on_hint(id, Hint.LAST)
    assert hints(policy, [fork, popular]) == [None, None]


def test_hints_wait_until_somebody_asks_but_not_for_ever():
    policy = ValuePolicy(LinearCost())
    for id in range(MOST_HINTS + 1):
        policy.on_insert(prefix(id), 1)
        policy.on_hint(id, Hint.LAST)
    assert len(policy._hints) == MOST_HINTS
    policy.on_remove(prefix(MOST_HINTS))
    assert len(policy._hints) == MOST_HINTS - 1


def test_a_session_that_is_over_goes_first():
    policy = ValuePolicy(LinearCost())
    for id in range(4):
        policy.on_insert(prefix(id, last_access=id), id)
    assert policy.victim(Pool.STATE, 5).id == 0
    policy.on_hint(2, Hint.LAST)
    assert policy.victim(Pool.STATE, 5).id == 2


def life(says_last: float | None) -> tuple[str, int]:
    """Digest of the victims of a random life, and the blocks that hit.

    Args:
        says_last: share of the requests that say so, whatever follows.
    """
    rng, draw, victims, hit = random.Random(7), random.Random(8), [], 0
    cache = ShadowCache(
        ShadowShape(1, 600, 24, 10000, 4),
        ValuePolicy(LinearCost()),
        on_victim=lambda pool, node: victims.append((pool.value, node.id)),
    )
    histories = [[session * 1000 + i for i in range(6)] for session in range(40)]
    for id in range(3000):
        history = histories[rng.randrange(40)]
        if len(history) > 60:
            del history[6:]
        history += [rng.randrange(1 << 40) for _ in range(rng.randrange(1, 6))]
        blocks = range(len(history))
        hashes = array("Q", [hash(tuple(history[: i + 1])) & (2**64 - 1) for i in blocks])
        hit += cache.begin(id, hashes, len(history) + 1)
        says = says_last is not None and draw.random() < says_last
        cache.end(id, array("Q"), Hint.LAST if says else None)
    return hashlib.blake2b(repr(victims).encode(), digest_size=8).hexdigest(), hit


def test_without_hints_the_victims_stay_those_they_are():
    assert life(None)[0] == "97a834073a54d99a"


def test_hints_at_random_cost_little():
    assert life(0.5)[1] > life(None)[1] * 0.97
