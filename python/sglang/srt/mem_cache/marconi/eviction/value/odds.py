"""How likely a cached prefix is used again, by class and age, learnt from what became of others.

Ages are grouped into levels that double: level 0 holds ages below ``COHORT_TICKS``, level ``i``
those from ``COHORT_TICKS * 2**(i-1)`` up to ``COHORT_TICKS * 2**i`` ticks. For each class and level
it counts how many prefixes came to that age and how many of them were used there: a survival curve
from data that evictions cut off (Kaplan and Meier, "Nonparametric Estimation from Incomplete
Observations", JASA 53, 1958). Where little was seen, a class is expected to be like its role, a
role like all that are not superseded, and an age like all ages.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from math import sqrt

#: Ticks that ages are counted in; about one request.
COHORT_TICKS = 4
#: Ages of COHORT_TICKS * 2**(LEVELS-2) ticks and more share the last level.
LEVELS = 25
#: Counts that tell classes apart are capped here.
MOST_COUNTED = 2


class Role(Enum):
    """Where a prefix stands among the cached ones."""

    # That of Enum hashes the name, in Python code, wherever a class is part of a key.
    __hash__ = object.__hash__

    #: Nothing cached lies below: a session would resume here.
    RESUMABLE = "resumable"
    #: The one prefix below it supersedes it, unless history is rewritten.
    SUPERSEDED = "superseded"
    #: Several prefixes part here.
    FORK = "fork"


@dataclass(frozen=True, slots=True, eq=False)
class PrefixClass:
    """What a prefix is, as far as the cache can see by itself; one object a class.

    Attributes:
        uses: requests that resumed at it; ``MOST_COUNTED`` stands for so many and more.
        turns: turns that its session took before it, as far as they were seen, counted likewise.
    """

    role: Role
    uses: int
    turns: int


_CLASSES = {
    (role, uses, turns): PrefixClass(role, uses, turns)
    for role in Role
    for uses in range(MOST_COUNTED + 1)
    for turns in range(MOST_COUNTED + 1)
}


def prefix_class(role: Role, uses: int = 0, turns: int = 0) -> PrefixClass:
    """The class of prefixes in this role and with this history."""
    return _CLASSES[role, min(uses, MOST_COUNTED), min(turns, MOST_COUNTED)]


#: Before anything was seen: chance that a prefix that came to an age is used before it doubles.
#: It does not depend on the age, so that value falls as age grows and the order is LRU.
PRIOR = 0.3
#: A superseded prefix is used so much less often than others, unless the traffic shows otherwise:
#: it goes before the rest.
SUPERSEDED_SHARE = 0.01
#: Observations at a level that an expectation weighs as much as.
PRIOR_WEIGHT = 20.0
#: Likewise, where a class is expected to be like its role: of the many classes each sees little.
CLASS_PRIOR_WEIGHT = 100.0
#: The evidence at a level is halved when it rests on so many prefixes.
MEMORY = 1000


def level_of_cohorts(age: int) -> int:
    """The level of an age in cohorts."""
    return min(age.bit_length(), LEVELS - 1)


def level_of(age: int) -> int:
    """The level of an age in ticks."""
    return level_of_cohorts(age // COHORT_TICKS)


#: The lowest age of each level, in ticks.
FIRST_AGES = (0, *(COHORT_TICKS << level >> 1 for level in range(1, LEVELS)))
#: How many ages each level holds, in ticks.
WIDTHS = tuple(max(age, COHORT_TICKS) for age in FIRST_AGES)


class _Counts:
    """How many prefixes came to each level, and how many were used there."""

    __slots__ = ("reached", "used")

    def __init__(self) -> None:
        self.reached = [0.0] * LEVELS
        self.used = [0.0] * LEVELS

    def chance(self, level: int, expected: float, weight: float = PRIOR_WEIGHT) -> float:
        used = self.used[level] + weight * expected
        return min(used / (max(self.reached[level], 0.0) + weight), 0.999)


class ReuseOdds:
    """Survival curves by class, and the rate of reuse that follows from them.

    What is observed counts from the next ``renew`` on, so that rates stay as they are between two.
    An observation is O(1); after ``renew`` the first question about a class is O(LEVELS**2).
    """

    def __init__(self) -> None:
        self._all = _Counts()
        self._roles = {role: _Counts() for role in Role}
        self._classes: dict[PrefixClass, tuple[_Counts, ...]] = {}
        self._rates: dict[PrefixClass, list[float]] = {}

    def reached(self, kind: PrefixClass, level: int) -> None:
        """A prefix of this class came to the ages of ``level``."""
        self._come(kind, level, 1)

    def survived(self, kind: PrefixClass, level: int, count: int = 1) -> None:
        """So many prefixes passed through the ages of ``level`` unused, to those of the next."""
        self._come(kind, level + 1, count)

    def used(self, kind: PrefixClass, level: int) -> None:
        """A request resumed from a prefix of this class at an age of ``level``."""
        for counts in self._of(kind):
            counts.used[level] += 1

    def lost_sight(self, kind: PrefixClass, level: int) -> None:
        """A prefix stopped being observed at an age of ``level``: it was there half of the time."""
        for counts in self._of(kind):
            counts.reached[level] -= 0.5

    def renew(self) -> None:
        """Let all that was observed count."""
        self._rates.clear()

    def chance(self, kind: PrefixClass, level: int) -> float:
        """Probability that a prefix that came to ``level`` is used at an age of that level."""
        return self._chance(kind, level, self._mean())

    def _come(self, kind: PrefixClass, level: int, count: int) -> None:
        for counts in self._classes.get(kind) or self._of(kind):
            reached = counts.reached[level] + count
            if reached >= MEMORY:
                reached /= 2
                counts.used[level] /= 2
            counts.reached[level] = reached

    def _chance(self, kind: PrefixClass, level: int, mean: float) -> float:
        expected = self._all.chance(level, mean)
        if kind.role is Role.SUPERSEDED:
            expected *= SUPERSEDED_SHARE
        *_, role, own = self._of(kind)
        return own.chance(level, role.chance(level, expected), CLASS_PRIOR_WEIGHT)

    def _mean(self) -> float:
        """The chance at an age that no prefix came to yet: that of all ages together."""
        used = sum(self._all.used) + PRIOR_WEIGHT * PRIOR
        return used / (max(sum(self._all.reached), 0.0) + PRIOR_WEIGHT)

    def rate(self, kind: PrefixClass, age: int) -> float:
        """Uses per tick of keeping a prefix, over the horizon at which keeping it pays best.

        It is the maximum over horizons of P(used within the horizon) / E[ticks it is kept until
        then], the index of Gittins ("Bandit Processes and Dynamic Allocation Indices", J. R.
        Statist. Soc. B 41, 1979): with odds that fall with age the horizon is short and the
        order LRU; where uses come late it looks ahead to them. It changes evenly with age from
        where a level begins to where it ends, so that neighbours in age are told apart.
        """
        level = level_of(age)
        first, growth = self.rates_within(kind, level)
        return first + min(age - FIRST_AGES[level], WIDTHS[level]) * growth

    def rates_within(self, kind: PrefixClass, level: int) -> tuple[float, float]:
        """The rate where a level begins, and what it grows by a tick within; until ``renew``."""
        rates = self._rates_by_level(kind)
        return rates[level], (rates[level + 1] - rates[level]) / WIDTHS[level]

    def _rates_by_level(self, kind: PrefixClass) -> list[float]:
        rates = self._rates.get(kind)
        if rates is None:
            rates = self._rates[kind] = self._rates_of(kind)
        return rates

    def _rates_of(self, kind: PrefixClass) -> list[float]:
        """The rates at the ages at which levels begin, and at the end of the last."""
        mean = self._mean()
        chances = [self._chance(kind, level, mean) for level in range(LEVELS)]
        within = [_best_rate(chances, level) for level in range(LEVELS)]
        between = [sqrt(before * after) for before, after in pairwise(within)]
        return [within[0], *between, within[-1]]

    def _of(self, kind: PrefixClass) -> tuple[_Counts, ...]:
        counts = self._classes.get(kind)
        if counts is None:
            narrow = (self._roles[kind.role], _Counts())
            counts = narrow if kind.role is Role.SUPERSEDED else (self._all, *narrow)
            self._classes[kind] = counts
        return counts


def _best_rate(chances: list[float], level: int) -> float:
    best = uses = ticks = 0.0
    alive = 1.0
    for ahead in range(level, LEVELS):
        chance = chances[ahead]
        # A prefix stands halfway through its own level; who is used in a level stays for half.
        span = WIDTHS[ahead] * (0.5 if ahead == level else 1.0)
        if best * span > 2:
            # Not even a certain use in this level or later would come soon enough.
            break
        uses += alive * chance
        ticks += alive * span * (1 - chance / 2)
        alive *= 1 - chance
        best = max(best, uses / ticks)
    return best
