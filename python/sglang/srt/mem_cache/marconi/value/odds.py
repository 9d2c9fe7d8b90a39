"""How likely a cached prefix is used again, by class and age, learnt from what became of others.

Ages are grouped into levels: level ``i`` holds ages from ``2**i`` up to ``2**(i+1)`` ticks. For
each class and level it counts how many prefixes came to that age and how many of them were used
there: a survival curve from data that evictions cut off (Kaplan and Meier, "Nonparametric
Estimation from Incomplete Observations", JASA 53, 1958).
"""

from __future__ import annotations

from enum import Enum

#: Ages of 2**LEVELS ticks and more share the last level.
LEVELS = 26


class PrefixClass(Enum):
    """What a prefix is, as far as the cache can see by itself."""

    # That of Enum hashes the name, in Python code, wherever a class is part of a key.
    __hash__ = object.__hash__

    #: Nothing cached lies below: a session would resume here.
    RESUMABLE = "resumable"
    #: The one prefix below it supersedes it, unless history is rewritten.
    SUPERSEDED = "superseded"
    #: Several prefixes part here.
    FORK = "fork"


#: Before anything was seen: chance that a prefix that came to an age is used before it doubles.
#: It does not depend on the age, so that value falls as age grows and the order is LRU; and what
#: is superseded goes before the rest.
PRIOR = {
    PrefixClass.RESUMABLE: 0.3,
    PrefixClass.SUPERSEDED: 0.003,
    PrefixClass.FORK: 0.3,
}
#: Observations that the prior weighs as much as, at each level.
PRIOR_WEIGHT = 20.0
#: Evidence of a class is halved when it rests on so many observations.
MEMORY = 4000
#: The values are computed anew after so many observations.
FRESHNESS = 256


def level_of(age: int) -> int:
    """The level of an age in ticks."""
    return min(max(age, 1).bit_length() - 1, LEVELS - 1)


class ReuseOdds:
    """Survival curves by class, and the rate of reuse that follows from them.

    A call is O(1), and one in ``FRESHNESS`` computes all rates anew: O(classes * LEVELS**2).

    Attributes:
        edition: grows when the rates change.
    """

    def __init__(self) -> None:
        self._reached = {kind: [0.0] * LEVELS for kind in PrefixClass}
        self._used = {kind: [0.0] * LEVELS for kind in PrefixClass}
        self._observations = dict.fromkeys(PrefixClass, 0)
        self._rates = {kind: self._rates_of(kind) for kind in PrefixClass}
        self._since = 0
        self.edition = 0

    def reached(self, kind: PrefixClass, level: int) -> None:
        """A prefix of this class came to the ages of ``level``."""
        self._reached[kind][level] += 1

    def survived(self, kind: PrefixClass, level: int) -> None:
        """A prefix passed through the ages of ``level`` unused, and came to those of the next."""
        self._reached[kind][level + 1] += 1
        self._observed(kind)

    def used(self, kind: PrefixClass, level: int) -> None:
        """A request resumed from a prefix of this class at an age of ``level``."""
        self._used[kind][level] += 1
        self._observed(kind)

    def lost_sight(self, kind: PrefixClass, level: int) -> None:
        """A prefix stopped being observed at an age of ``level``: it was there half of the time."""
        self._reached[kind][level] -= 0.5

    def chance(self, kind: PrefixClass, level: int) -> float:
        """Probability that a prefix that came to ``level`` is used at an age of that level."""
        used = self._used[kind][level] + PRIOR_WEIGHT * PRIOR[kind]
        return min(used / (max(self._reached[kind][level], 0.0) + PRIOR_WEIGHT), 0.999)

    def rate(self, kind: PrefixClass, level: int) -> float:
        """Uses per tick of keeping a prefix, over the horizon at which keeping it pays best.

        It is the maximum over horizons of P(used within the horizon) / E[ticks it is kept until
        then], the index of Gittins ("Bandit Processes and Dynamic Allocation Indices", J. R.
        Statist. Soc. B 41, 1979): with odds that fall with age the horizon is short and the
        order LRU; where uses come late it looks ahead to them.
        """
        return self._rates[kind][level]

    def _observed(self, kind: PrefixClass) -> None:
        self._observations[kind] += 1
        if self._observations[kind] >= MEMORY:
            self._observations[kind] //= 2
            self._reached[kind] = [count / 2 for count in self._reached[kind]]
            self._used[kind] = [count / 2 for count in self._used[kind]]
        self._since += 1
        if self._since >= FRESHNESS:
            self._since = 0
            self.edition += 1
            self._rates = {kind: self._rates_of(kind) for kind in PrefixClass}

    def _rates_of(self, kind: PrefixClass) -> list[float]:
        chances = [self.chance(kind, level) for level in range(LEVELS)]
        return [_best_rate(chances, level) for level in range(LEVELS)]


def _best_rate(chances: list[float], level: int) -> float:
    best = uses = ticks = 0.0
    alive = 1.0
    for ahead in range(level, LEVELS):
        chance = chances[ahead]
        # A prefix stands halfway through its own level; who is used in a level stays for half.
        width = 2.0**ahead * (0.5 if ahead == level else 1.0)
        uses += alive * chance
        ticks += alive * width * (1 - chance / 2)
        alive *= 1 - chance
        best = max(best, uses / ticks)
    return best
