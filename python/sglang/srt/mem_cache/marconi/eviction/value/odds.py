"""How likely a cached prefix is used again, by class and age, learnt from what became of others.

Ages are grouped into levels that double: level 0 holds ages below ``COHORT_TICKS``, level ``i``
those from ``COHORT_TICKS * 2**(i-1)`` up to ``COHORT_TICKS * 2**i`` ticks. For each class and level
it counts how many prefixes came to that age and how many of them were used there: a survival curve
from data that evictions cut off (Kaplan and Meier, "Nonparametric Estimation from Incomplete
Observations", JASA 53, 1958). :class:`Evidence` drops what no longer holds. Where little was seen,
a class is expected to be like its role, a role like all that are not superseded, and an age like
all ages.

All of this knows of no hint. What was hinted is put beside it: of the prefixes of a role of which
the same was said, or nothing, how many were used, and how many were to be expected? Where the two
differ by more than chance explains, what is expected is multiplied by their share; where not, the
hint tells nothing, and all is as without it.

A class knows of no application either. Of those that share an opening it is asked likewise how
many were used, and how many were to be expected of their class. Where far fewer were used than
chance explains, what is expected is multiplied by their share, to a power of four: openings of one
share are one class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import sqrt

from sglang.srt.mem_cache.marconi.eviction.value.evidence import (
    LEVELS,
    MOST_CHANCE,
    Evidence,
)
from sglang.srt.mem_cache.marconi.eviction.value.openings import OPENINGS
from sglang.srt.mem_cache.marconi.hints import Hint

#: Ticks that ages are counted in; about one request.
COHORT_TICKS = 4
#: Counts that tell classes apart are capped here.
MOST_COUNTED = 2
#: The least power of four by which one opening is used less than all; few, for each makes queues
#: of its own. One that is used more is like all: else newcomers would push out what is kept, where
#: memory is too short for both.
LEAST_POWER = -3


class Role(Enum):
    """Where a prefix stands among the cached ones."""

    # That of Enum hashes the name, in Python code, wherever a class is part of a key.
    __hash__ = object.__hash__

    #: Nothing cached lies below: a session would resume here.
    RESUMABLE = "resumable"
    #: The one prefix below it supersedes it, unless history is rewritten.
    SUPERSEDED = "superseded"
    #: Several prefixes part here, or did since its state was cached.
    FORK = "fork"


@dataclass(frozen=True, slots=True, eq=False)
class PrefixClass:
    """What a prefix is, as far as the cache can see by itself; one object a class.

    Attributes:
        uses: requests that resumed at it; ``MOST_COUNTED`` stands for so many and more.
        turns: turns that its session took before it, as far as they were seen, counted likewise.
        hint: what was said of what follows, since it was last used.
        opening: number of what its session began with (:class:`Openings`), of resumable prefixes;
            ``None``: any.
        power: of openings that are used ``4 ** power`` times as often as all; 0 or less.
    """

    role: Role
    uses: int
    turns: int
    hint: Hint | None = None
    opening: int | None = None
    power: int = 0

    @property
    def unhinted(self) -> PrefixClass:
        """The class of the same prefixes if nothing had been said."""
        if self.hint is None:
            return self
        return _CLASSES[self.role, self.uses, self.turns, None, self.opening, self.power]

    def of_all(self, power: int = 0) -> PrefixClass:
        """The class of their like of any opening, or of all openings of this power."""
        return _CLASSES[self.role, self.uses, self.turns, self.hint, None, power]


_OF_OPENINGS = (
    *((opening, 0) for opening in (None, *range(OPENINGS + 1))),
    *((None, power) for power in range(LEAST_POWER, 0)),
)
_CLASSES = {
    (role, uses, turns, hint, *which): PrefixClass(role, uses, turns, hint, *which)
    for role in Role
    for uses in range(MOST_COUNTED + 1)
    for turns in range(MOST_COUNTED + 1)
    for hint in (None, *Hint)
    for which in (_OF_OPENINGS if role is Role.RESUMABLE else [(None, 0)])
}


def prefix_class(
    role: Role,
    uses: int = 0,
    turns: int = 0,
    hint: Hint | None = None,
    opening: int | None = None,
) -> PrefixClass:
    """The class of prefixes in this role, with this history, this hint and this opening."""
    if role is not Role.RESUMABLE:
        opening = None
    if uses > MOST_COUNTED:
        uses = MOST_COUNTED
    if turns > MOST_COUNTED:
        turns = MOST_COUNTED
    return _CLASSES[role, uses, turns, hint, opening, 0]


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
#: What is said to be over is used so much less often than if nothing were said, at first; all else
#: that is said changes nothing then.
ENDED_SHARE = 0.01
#: Expected uses that this weighs as much as. From three more on, as many uses as without the hint
#: make it void: it is then within ``TELLING`` deviations of what they are by chance.
ENDED_WEIGHT = 8.0
#: Likewise of what is found at all levels, where one of them is expected to be like all.
SHARE_WEIGHT = 2.0
#: Standard deviations by which uses must differ from those expected, for a hint to tell anything.
TELLING = 2.5
#: Likewise, for an opening to tell anything: there are many, and uses come in bursts.
OPENING_TELLING = 4.0
#: Doublings of its age within which a prefix is used again, if it is worth waiting for.
FORESEEN = 8
#: Where fewer uses are expected, nothing can be found.
FEWEST_USES = 0.01
#: The evidence on a hint is halved, at a level, when so many uses were expected.
HINT_MEMORY = 200.0


def level_of_cohorts(age: int) -> int:
    """The level of an age in cohorts."""
    # Asked several times a request, for which the built-in min is slow; so below.
    level = age.bit_length()
    return level if level < LEVELS else LEVELS - 1


def level_of(age: int) -> int:
    """The level of an age in ticks."""
    return level_of_cohorts(age // COHORT_TICKS)


#: The lowest age of each level, in ticks.
FIRST_AGES = (0, *(COHORT_TICKS << level >> 1 for level in range(1, LEVELS)))
#: How many ages each level holds, in ticks.
WIDTHS = tuple(max(age, COHORT_TICKS) for age in FIRST_AGES)


class _Found:
    """Uses of what the same was said of, by level: those expected without that, and those found."""

    __slots__ = ("expected", "first", "used")

    def __init__(self, hint: Hint | None) -> None:
        self.first = ENDED_SHARE if hint is not None and hint.ends else 1.0
        self.expected = [0.0] * LEVELS
        self.used = [0.0] * LEVELS

    def expect(self, level: int, uses: float) -> None:
        expected = self.expected[level] + uses
        if expected >= HINT_MEMORY:
            expected /= 2
            self.used[level] /= 2
        self.expected[level] = expected

    def shares(self, common: Sequence[float]) -> list[float]:
        """Found over expected at each level, where the two differ; elsewhere as at all together.

        Args:
            common: what all in the role found over what was expected of them.
        """
        expected = [max(uses, 0.0) * of for uses, of in zip(self.expected, common, strict=True)]
        used = sum(self.used) + ENDED_WEIGHT * self.first
        at_all = _share(used, sum(expected) + ENDED_WEIGHT, 1.0, weight=0.0)
        return [_share(used, uses, at_all) for used, uses in zip(self.used, expected, strict=True)]


def _power(own: Evidence, alike: Evidence) -> int:
    """The power of four nearest to uses found over those expected, if these are far more.

    It is 0 where that may be chance. What was expected is what the like of it see today.

    Args:
        alike: what they belong to, from which so many uses were to be expected.
    """
    used, expected, variance = sum(own.used), 0.0, 0.0
    for reached, of_all, used_of_all in zip(own.reached, alike.reached, alike.used, strict=True):
        if of_all:
            likely = reached * used_of_all / of_all
            expected += likely
            # As in Evidence.holds; of a class that few came to, little is to be expected surely.
            variance += likely * (1 + reached / of_all)
    if expected - used <= OPENING_TELLING * sqrt(variance):
        return 0
    share = (used + SHARE_WEIGHT) / (expected + SHARE_WEIGHT)
    power = 0
    # Powers of two are exact on every machine.
    while power > LEAST_POWER and share < 4.0**power / 2:
        power -= 1
    return power


def _share(used: float, expected: float, first: float, weight: float = SHARE_WEIGHT) -> float:
    """Uses found over those expected, which are ``first`` times as many, if the two differ."""
    likely = expected * first
    # Of many that are used with a small chance each, the variance is the mean.
    if likely < FEWEST_USES or (used - likely) ** 2 <= TELLING**2 * likely:
        return first
    return (used + weight * first) / (expected + weight)


class ReuseOdds:
    """Survival curves by class, and the rate of reuse that follows from them.

    What is observed counts from the next ``renew`` on, so that rates stay as they are between two,
    but those of an opening whose number is given anew.
    An observation is O(1), or O(classes) where evidence is dropped. After ``renew`` the first about
    an opening is O(LEVELS), and so is the first question about a class or a level of it.

    Args:
        evidence: makes the counts of a class, and of those that it is like.
    """

    def __init__(self, evidence: Callable[[], Evidence] = Evidence) -> None:
        self._evidence = evidence
        self._all = evidence()
        self._roles = {role: evidence() for role in Role}
        self._classes: dict[PrefixClass, tuple[Evidence, ...]] = {}
        self._rates: dict[PrefixClass, _Rates] = {}
        # Before the first hint it is empty, and costs nothing.
        self._found: dict[tuple[Role, Hint | None], _Found] = {}
        self._chances: dict[PrefixClass, list[float]] = {}
        self._telling: dict[tuple[Role, Hint | None], list[float]] = {}
        self._powers: dict[PrefixClass, int] = {}

    def reached(self, kind: PrefixClass, level: int) -> None:
        """A prefix of this class came to the ages of ``level``."""
        self._come(kind, level, 1)

    def survived(self, kind: PrefixClass, level: int, count: int = 1) -> None:
        """So many prefixes passed through the ages of ``level`` unused, to those of the next."""
        self._come(kind, level + 1, count)

    def used(self, kind: PrefixClass, level: int) -> None:
        """A request resumed from a prefix of this class at an age of ``level``."""
        if self._found:
            self._find(kind).used[level] += 1
            kind = kind.unhinted
        for counts in self._about(kind):
            counts.use(level)

    def lost_sight(self, kind: PrefixClass, level: int) -> None:
        """A prefix stopped being observed at an age of ``level``: it was there half of the time."""
        self._come(kind, level, -0.5)

    def told(self, kind: PrefixClass, level: int, hint: Hint | None) -> None:
        """Something was said of a prefix of this class that came to ``level``."""
        self._expect(kind, level, -1)
        self._expect(prefix_class(kind.role, kind.uses, kind.turns, hint, kind.opening), level, 1)

    def renew(self) -> None:
        """Let all that was observed count."""
        self._rates.clear()
        self._chances.clear()
        self._telling.clear()
        self._powers.clear()

    def forget_opening(self, number: int) -> None:
        """An opening of that number is new; O(classes)."""
        for kind in [kind for kind in self._classes if kind.opening == number]:
            del self._classes[kind]
            self._powers.pop(kind, None)

    def chance(self, kind: PrefixClass, level: int) -> float:
        """Probability that a prefix that came to ``level`` is used at an age of that level."""
        chance = self._chance(kind.of_all().unhinted, level, self._mean())
        chance *= 4.0 ** self._by_power(kind).power
        if not self._found:
            return chance
        return min(chance * self._shares_of(kind)[level], MOST_CHANCE)

    def ever(self, kind: PrefixClass, level: int) -> float:
        """Probability that a prefix that came to ``level`` is used within ``FORESEEN`` levels."""
        unused = 1.0
        for chance in self._hinted_chances(kind)[level : level + FORESEEN]:
            unused *= 1 - chance
        return 1 - unused

    def telling(self, kind: PrefixClass) -> PrefixClass:
        """The class of the same chances, until ``renew``, without what tells nothing."""
        kind = self._by_power(kind)
        if kind.hint is None:
            return kind
        return kind.unhinted if self._shares(kind) == self._shares(kind.unhinted) else kind

    def _find(self, kind: PrefixClass) -> _Found:
        found = self._found.get((kind.role, kind.hint))
        if found is None:
            found = self._found[kind.role, kind.hint] = _Found(kind.hint)
        return found

    def _shares(self, kind: PrefixClass) -> list[float]:
        """Found over expected, by level, of a role and a hint; until ``renew``."""
        shares = self._telling.get((kind.role, kind.hint))
        if shares is None:
            shares = self._telling[kind.role, kind.hint] = self._shares_of(kind)
        return shares

    def _shares_of(self, kind: PrefixClass) -> list[float]:
        alike = [found for (role, _), found in self._found.items() if role is kind.role]
        common = [
            (sum(found.used[level] for found in alike) + SHARE_WEIGHT)
            / (max(sum(found.expected[level] for found in alike), 0.0) + SHARE_WEIGHT)
            for level in range(LEVELS)
        ]
        return self._find(kind).shares(common)

    def _by_power(self, kind: PrefixClass) -> PrefixClass:
        """The class that it is in place of its opening's, until ``renew``."""
        if kind.opening is None:
            return kind
        return kind.of_all(self._power_of(kind.unhinted))

    def _power_of(self, kind: PrefixClass) -> int:
        """By how much less an opening is used than its class, until ``renew``."""
        power = self._powers.get(kind)
        if power is None:
            *_, alike, own = self._of(kind)
            power = self._powers[kind] = _power(own, alike)
        return power

    def _expect(self, kind: PrefixClass, level: int, count: float) -> None:
        """So many prefixes of this class came to ``level``, some of which are to be used there."""
        self._find(kind).expect(level, count * self._chances_of(kind.unhinted)[level])

    def _chances_of(self, kind: PrefixClass) -> list[float]:
        """By level, until ``renew``, if nothing was said."""
        kind = self._by_power(kind)
        chances = self._chances.get(kind)
        if chances is None:
            if kind.power:
                share = 4.0**kind.power
                chances = [of * share for of in self._chances_of(kind.of_all())]
            else:
                mean = self._mean()
                chances = [self._chance(kind, level, mean) for level in range(LEVELS)]
            self._chances[kind] = chances
        return chances

    def _come(self, kind: PrefixClass, level: int, count: float) -> None:
        if self._found:
            self._expect(kind, level, count)
            kind = kind.unhinted
        for counts in self._about(kind):
            if counts.come(level, count) and kind.opening is not None:
                self._weigh_openings(counts, level)

    def _weigh_openings(self, alike: Evidence, level: int) -> None:
        """Where a class changed, see which of its openings did, before they are set beside it."""
        for kind, counts in self._classes.items():
            if kind.opening is not None and counts[-2] is alike:
                counts[-1].weigh(level)

    def _about(self, kind: PrefixClass) -> tuple[Evidence, ...]:
        """What a prefix of an unhinted class is evidence on.

        What is told apart is none on its class, its role and all: else a run of it would look like
        a change of the others.
        """
        counts = self._classes.get(kind) or self._of(kind)
        return counts[-1:] if kind.opening is not None and self._power_of(kind) else counts

    def _chance(self, kind: PrefixClass, level: int, mean: float) -> float:
        expected = self._all.chance(level, mean, PRIOR_WEIGHT)
        if kind.role is Role.SUPERSEDED:
            expected *= SUPERSEDED_SHARE
        *_, role, own = self._of(kind)
        expected = role.chance(level, expected, PRIOR_WEIGHT)
        return own.chance(level, expected, CLASS_PRIOR_WEIGHT)

    def _mean(self) -> float:
        """The chance at an age that no prefix came to yet: that of all ages together."""
        used = sum(self._all.used) + PRIOR_WEIGHT * PRIOR
        return used / (sum(self._all.reached) + PRIOR_WEIGHT)

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
        kind = self._by_power(kind)
        rates = self._rates.get(kind)
        if rates is None:
            rates = self._rates[kind] = _Rates(self._hinted_chances(kind))
        return rates.within(level)

    def _hinted_chances(self, kind: PrefixClass) -> list[float]:
        """By level, until ``renew``, with what was said."""
        chances = self._chances_of(kind.unhinted)
        if not self._found:
            return chances
        shares = self._shares(kind)
        return [min(of * share, MOST_CHANCE) for of, share in zip(chances, shares, strict=True)]

    def _of(self, kind: PrefixClass) -> tuple[Evidence, ...]:
        counts = self._classes.get(kind)
        if counts is None and kind.opening is not None:
            counts = self._classes[kind] = (*self._of(kind.of_all()), self._evidence())
        elif counts is None:
            narrow = (self._roles[kind.role], self._evidence())
            counts = narrow if kind.role is Role.SUPERSEDED else (self._all, *narrow)
            self._classes[kind] = counts
        return counts


class _Rates:
    """Rates of reuse by level, each found when it is first asked for: most levels are empty.

    Args:
        chances: of a use at each level; they must not change.
    """

    __slots__ = ("_best", "_chances", "_within")

    def __init__(self, chances: list[float]) -> None:
        self._chances = chances
        self._best: dict[int, float] = {}
        self._within: dict[int, tuple[float, float]] = {}

    def within(self, level: int) -> tuple[float, float]:
        """See :meth:`ReuseOdds.rates_within`."""
        known = self._within.get(level)
        if known is None:
            first = self._at_start(level)
            growth = (self._at_start(level + 1) - first) / WIDTHS[level]
            known = self._within[level] = (first, growth)
        return known

    def _at_start(self, level: int) -> float:
        """The rate at the age at which a level begins; beyond the last, at which that ends."""
        if level == 0:
            return self._best_at(0)
        before = self._best_at(level - 1)
        return before if level == LEVELS else sqrt(before * self._best_at(level))

    def _best_at(self, level: int) -> float:
        best = self._best.get(level)
        if best is None:
            best = self._best[level] = _best_rate(self._chances, level)
        return best


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
