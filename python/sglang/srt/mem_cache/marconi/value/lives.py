"""Watches prefixes grow older until they are used, change class or are forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from sglang.srt.mem_cache.marconi.value.odds import (
    LEVELS,
    PrefixClass,
    ReuseOdds,
    Role,
    level_of,
    prefix_class,
)

#: Entries that are looked over at each new life. At 2 and more they do not outgrow the lives.
SWEPT = 3


@dataclass(slots=True, eq=False)
class Life:
    """A prefix since its last use, as a member of one class.

    Attributes:
        id: the prefix's.
        uses, turns: its history, as :class:`PrefixClass` counts it but uncapped.
        stamp: tick of its last use; its age is counted from there.
        level: of its age, as of the last :meth:`Lives.advance`.
    """

    id: int
    kind: PrefixClass
    stamp: int
    level: int
    uses: int = 0
    turns: int = 0
    watch: int = 0


class Lives:
    """Reports to the odds what becomes of each life; every call is O(log n), amortised.

    Entries of lives that are watched no longer are swept out a few at each new life, so that no
    call takes long: the sweep moves those that stand from the end of one heap to another.
    """

    def __init__(self, odds: ReuseOdds) -> None:
        self._odds = odds
        self._due: list[tuple[int, int, Life]] = []
        self._unswept: list[tuple[int, int, Life]] = []
        self._watch = 0

    def begin(
        self, id: int, role: Role, stamp: int, now: int, *, uses: int = 0, turns: int = 0
    ) -> Life:
        """Watch a prefix from tick ``now`` on, at the age that it has then."""
        kind = prefix_class(role, uses, turns)
        life = Life(id, kind, stamp, level_of(now - stamp), uses, turns)
        self._odds.reached(life.kind, life.level)
        self._wait(life)
        self._sweep()
        return life

    def use(self, life: Life, now: int) -> None:
        """A request resumed from it at tick ``now``; it is watched no longer."""
        self._grow(life, now)
        self._odds.used(life.kind, life.level)
        self._stop(life)

    def lose(self, life: Life, now: int) -> None:
        """Watch it no longer, whatever may become of it."""
        self._grow(life, now)
        self._odds.lost_sight(life.kind, life.level)
        self._stop(life)

    def advance(self, now: int) -> Iterator[Life]:
        """The lives that came to their next level by tick ``now``, in the order of time."""
        while True:
            due, unswept = self._due, self._unswept
            if not due or (unswept and unswept[0] < due[0]):
                due = unswept
            if not due or due[0][0] > now:
                return
            _, watch, life = heappop(due)
            if life.watch == watch:
                self._odds.survived(life.kind, life.level)
                life.level += 1
                self._wait(life)
                yield life

    def _grow(self, life: Life, now: int) -> None:
        level = level_of(now - life.stamp)
        while life.level < level:
            self._odds.survived(life.kind, life.level)
            life.level += 1

    def _wait(self, life: Life) -> None:
        self._watch += 1
        life.watch = self._watch
        if life.level < LEVELS - 1:
            heappush(self._due, (life.stamp + (2 << life.level), life.watch, life))

    def _stop(self, life: Life) -> None:
        life.watch = 0

    def _sweep(self) -> None:
        for _ in range(SWEPT):
            if not self._unswept:
                self._due, self._unswept = [], self._due
            if not self._unswept:
                return
            entry = self._unswept.pop()
            if entry[2].watch == entry[1]:
                heappush(self._due, entry)
