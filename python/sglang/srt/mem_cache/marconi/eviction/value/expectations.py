"""Candidates at which waiting requests would resume, and what keeping them until then is worth."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix

#: Ticks from the turn of one waiting request to that of the next: about one request.
TICKS_A_TURN = 4


@dataclass(frozen=True, slots=True)
class Expected:
    """A candidate that a request will use when its turn comes.

    Attributes:
        rate: uses per tick of keeping it until then; one over the ticks until the turn, if its
            learnt rate is not higher.
        efficiency: FLOPs lost per byte freed.
    """

    prefix: CachedPrefix
    stamp: int
    rate: float
    efficiency: float

    @property
    def key(self) -> tuple[float, int, int]:
        """By worth; of equals the one that was used first, then the one of lower order."""
        return self.rate * self.efficiency, self.stamp, self.prefix.order


class Turns:
    """When waiting requests are served, by the prefixes at which they would resume.

    Places in the queue are grouped into levels that double (0, 1, 2 and 3, 4 to 7, …), so that a
    request changes its level a few times while it waits, and not whenever another is served.

    Attributes:
        level: of the first of them in the queue, by the prefix's id.
    """

    def __init__(self) -> None:
        self.level: dict[int, int] = {}

    def __contains__(self, id: int) -> bool:
        return id in self.level

    def rate(self, id: int) -> float:
        """Uses per tick of keeping the prefix until its turn."""
        return 1 / (TICKS_A_TURN << self.level[id])

    def end(self, id: int) -> None:
        """The request was admitted."""
        self.level.pop(id, None)

    def change(self, queue: Sequence[int | None]) -> tuple[list[int], list[int]]:
        """The queue is this one now.

        Args:
            queue: prefixes at which waiting requests would resume, the next to be served first;
                ``None`` for a request that would resume at none.

        Returns:
            Ids that are no longer expected, and ids that are expected at another level.
        """
        before, self.level = self.level, {}
        for place, id in enumerate(queue):
            if id is not None:
                self.level.setdefault(id, place.bit_length())
        gone = [id for id in before if id not in self.level]
        moved = [id for id, level in self.level.items() if before.get(id) != level]
        return gone, moved


class Expectations:
    """The expected candidates of one pool; at most as many as requests are known to wait.

    ``put`` and ``discard`` are a binary search and a move of what is worth more.
    """

    def __init__(self) -> None:
        self._members: dict[int, Expected] = {}
        self._order: list[tuple[float, int, int, int]] = []

    def __iter__(self) -> Iterator[Expected]:
        return iter(self._members.values())

    def get(self, id: int) -> Expected | None:
        return self._members.get(id)

    def put(self, expected: Expected) -> None:
        """Enter a candidate, or give it another worth."""
        id = expected.prefix.id
        self.discard(id)
        self._members[id] = expected
        insort(self._order, (*expected.key, id))

    def discard(self, id: int) -> None:
        """Take a candidate out, if it is here."""
        known = self._members.pop(id, None)
        if known is not None:
            del self._order[bisect_left(self._order, (*known.key, id))]

    def lowest(self, excluding: Container[int] = ()) -> Expected | None:
        """The candidate that is worth least, ids in ``excluding`` passed over."""
        for *_, id in self._order:
            if id not in excluding:
                return self._members[id]
        return None

    def _check(self) -> None:
        wanted = sorted((*one.key, id) for id, one in self._members.items())
        assert self._order == wanted, "the order of expected candidates is not that of their worth"
