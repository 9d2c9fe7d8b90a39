"""Evidence on reuse: it is what was counted, fades, and goes where the traffic contradicts it."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies.value import FadingEvidence
from sglang.srt.mem_cache.marconi.eviction.value.evidence import (
    CONTRADICTING,
    LATEST,
    MEMORY,
    MOST_CHANCE,
    Evidence,
)

LEVEL = 5


class Twin:
    """The same of one level, from lists of all that was counted and still counts."""

    def __init__(self) -> None:
        self.earlier: list[tuple[Fraction, Fraction]] = []
        self.latest: list[tuple[Fraction, Fraction]] = []

    def come(self, count: float) -> None:
        known, _ = self.sums
        self.latest.append((max(Fraction(count), -known), Fraction()))
        if _sums(self.latest)[0] >= LATEST:
            self.weigh()

    def use(self) -> None:
        self.latest.append((Fraction(), Fraction(1)))

    def weigh(self) -> None:
        (before, used_before), (latest, used) = map(_sums, (self.earlier, self.latest))
        drops = False
        if before and used <= latest:
            # Two samples of one share: by how much is one expected to differ from the other's?
            share = (used + used_before) / (latest + before)
            variance = latest * share + latest * latest * share / before
            excess = used - used_before / before * latest
            drops = excess * excess > Fraction(CONTRADICTING) ** 2 * max(variance, 1)
        together = [*([] if drops else self.earlier), *self.latest]
        if _sums(together)[0] >= MEMORY:
            together = [(passed / 2, used / 2) for passed, used in together]
        self.earlier, self.latest = together, []

    @property
    def sums(self) -> tuple[Fraction, Fraction]:
        return _sums(self.earlier + self.latest)


def _sums(counted: list[tuple[Fraction, Fraction]]) -> tuple[Fraction, Fraction]:
    return sum((n for n, _ in counted), Fraction()), sum((n for _, n in counted), Fraction())


#: How many come to the level, or less, and are used there.
STEPS = st.lists(
    st.tuples(st.sampled_from([-80, -0.5, 1, 20, 63.5, 200, 900]), st.integers(0, 50)), max_size=40
)


@given(STEPS)
def test_it_is_what_was_counted_and_still_holds(steps: list[tuple[float, int]]):
    evidence, twin = Evidence(), Twin()
    for count, uses in steps:
        evidence.come(LEVEL, count)
        twin.come(count)
        for _ in range(uses):
            evidence.use(LEVEL)
            twin.use()
        reached, used = map(float, twin.sums)
        reached = max(reached, used)
        assert evidence.reached[LEVEL] == pytest.approx(reached)
        assert evidence.used[LEVEL] == pytest.approx(used)
        chance = (used + 2) / (reached + 10)
        assert evidence.chance(LEVEL, 0.2, 10) == pytest.approx(min(chance, MOST_CHANCE))
    assert sum(evidence.reached) == evidence.reached[LEVEL], "it counted at another level"


class Counted(Evidence):
    """Counts how often it does not hold."""

    __slots__ = ("dropped",)

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0

    def holds(self, level: int) -> bool:
        holds = super().holds(level)
        self.dropped += not holds
        return holds


def see(evidence: Evidence, prefixes: int, share: float, rng: random.Random) -> None:
    """So many prefixes come, and a share of them is used by chance."""
    for _ in range(prefixes):
        evidence.come(LEVEL, 1)
        if rng.random() < share:
            evidence.use(LEVEL)


@pytest.mark.parametrize("share", [0.003, 0.02, 0.1, 0.5, 0.95])
def test_chance_alone_seldom_drops_it(share: float):
    evidence = Counted()
    see(evidence, 2000 * LATEST, share, random.Random(1))
    assert evidence.dropped < 0.06 * 2000


def test_what_came_before_the_rest_was_dropped_makes_no_odds_of_it():
    evidence, rng = Counted(), random.Random(2)
    see(evidence, MEMORY, 0.02, rng)
    evidence.dropped = 0
    see(evidence, LATEST, 0.3, rng)
    assert evidence.dropped == 1
    for _ in range(400):
        evidence.come(LEVEL, -0.5)
    assert evidence.used[LEVEL] <= evidence.reached[LEVEL]
    assert 0 < evidence.chance(LEVEL, 0.1, 100) < 0.4


def test_uses_of_those_before_contradict_nothing():
    evidence, rng = Evidence(), random.Random(3)
    see(evidence, 5 * LATEST, 0.1, rng)
    before = evidence.reached[LEVEL]
    for _ in range(2 * LATEST):
        evidence.use(LEVEL)
    see(evidence, LATEST, 0.1, rng)
    assert evidence.reached[LEVEL] == before + LATEST


CHANGES = [(0.02, 0.3), (0.3, 0.02), (0.9, 0.4), (0.3, 0.8)]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_change_of_traffic_counts_at_once(before: float, after: float):
    for seed in range(20):
        rng, evidence, fading = random.Random(seed), Evidence(), FadingEvidence()
        for one in (evidence, fading):
            see(one, 5 * MEMORY, before, rng)
            see(one, 3 * LATEST, after, rng)
        assert abs(evidence.chance(LEVEL, before, 1) - after) < abs(after - before) / 2
        assert abs(fading.chance(LEVEL, before, 1) - after) > abs(after - before) / 2
