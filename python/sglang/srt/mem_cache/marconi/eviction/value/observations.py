"""Watches prefixes grow older until they are used, change class or are forgotten."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.eviction.value.evidence import LEVELS
from sglang.srt.mem_cache.marconi.eviction.value.odds import (
    COHORT_TICKS,
    PrefixClass,
    ReuseOdds,
    Role,
    level_of_cohorts,
    prefix_class,
)
from sglang.srt.mem_cache.marconi.eviction.value.openings import ALONE
from sglang.srt.mem_cache.marconi.hints import Hint

#: A cohort that is so many cohorts old has just outgrown level 0, 1, 2, …
_DISTANCES = tuple(1 << level for level in range(LEVELS - 1))


@dataclass(slots=True, eq=False)
class Observation:
    """A prefix since its last use, as a member of one class.

    Attributes:
        id: the prefix's.
        uses, turns: its history, as :class:`PrefixClass` counts it but uncapped.
        stamp: tick of its last use; its age is counted from there.
        opening: what its session began with, whatever its role.
    """

    id: int
    kind: PrefixClass
    stamp: int
    uses: int = 0
    turns: int = 0
    opening: int = ALONE


class Observations:
    """Reports to the odds what becomes of each prefix that is watched.

    Prefixes that were last used within the same ``COHORT_TICKS`` ticks are a cohort, and age
    together: all that is kept of it is how many of each class are still watched. So ``begin``,
    ``use`` and ``lose`` are O(1), and the passing of ``COHORT_TICKS`` ticks is O(LEVELS * classes
    of a cohort), however many prefixes are watched.
    """

    def __init__(self, odds: ReuseOdds) -> None:
        self._odds = odds
        self._alive: dict[int, dict[PrefixClass, int]] = {}
        self._cohort = 0

    def begin(
        self,
        id: int,
        role: Role,
        stamp: int,
        *,
        uses: int = 0,
        turns: int = 0,
        opening: int = ALONE,
    ) -> Observation:
        """Watch a prefix from now on, at the age that it has."""
        kind = prefix_class(role, uses, turns, opening=opening)
        watched = Observation(id, kind, stamp, uses, turns, opening)
        self._go_on(watched)
        self._odds.reached(watched.kind, self._level(watched))
        return watched

    def change(self, watched: Observation, role: Role) -> None:
        """It stands in another role now."""
        self.lose(watched)
        watched.kind = _class_of(watched, role, watched.kind.hint)
        self._go_on(watched)
        self._odds.reached(watched.kind, self._level(watched))

    def tell(self, watched: Observation, hint: Hint | None) -> None:
        """Something is said of it, or no longer holds."""
        kind = watched.kind
        self._odds.told(kind, self._level(watched), hint)
        self._stop(watched)
        watched.kind = _class_of(watched, kind.role, hint)
        self._go_on(watched)

    def use(self, watched: Observation) -> None:
        """A request resumed from it; it is watched no longer."""
        self._odds.used(watched.kind, self._level(watched))
        self._stop(watched)

    def lose(self, watched: Observation) -> None:
        """Watch it no longer, whatever may become of it."""
        self._odds.lost_sight(watched.kind, self._level(watched))
        self._stop(watched)

    def advance(self, now: int) -> None:
        """Tick ``now`` has come."""
        cohort = now // COHORT_TICKS
        while self._cohort < cohort:
            if not self._alive:
                self._cohort = cohort
                return
            self._cohort += 1
            alive, survived = self._alive, self._odds.survived
            for level, distance in enumerate(_DISTANCES):
                if distance > self._cohort:
                    break
                grown = alive.get(self._cohort - distance)
                if grown is not None:
                    for kind, count in grown.items():
                        survived(kind, level, count)

    def _level(self, watched: Observation) -> int:
        return level_of_cohorts(self._cohort - watched.stamp // COHORT_TICKS)

    def _go_on(self, watched: Observation) -> None:
        cohort = self._alive.setdefault(watched.stamp // COHORT_TICKS, {})
        cohort[watched.kind] = cohort.get(watched.kind, 0) + 1

    def _stop(self, watched: Observation) -> None:
        number = watched.stamp // COHORT_TICKS
        cohort = self._alive[number]
        cohort[watched.kind] -= 1
        if not cohort[watched.kind]:
            del cohort[watched.kind]
        if not cohort:
            del self._alive[number]


def _class_of(watched: Observation, role: Role, hint: Hint | None) -> PrefixClass:
    return prefix_class(role, watched.uses, watched.turns, hint, watched.opening)
