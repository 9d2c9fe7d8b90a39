"""Candidates, and those that no other one undercuts: the lowest score is one of these."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterator
from math import isqrt

from sglang.srt.mem_cache.marconi.eviction.access_order import AccessOrder
from sglang.srt.mem_cache.marconi.eviction.stamp_tree import Key, StampTree
from sglang.srt.mem_cache.marconi.eviction.utility import Utility

#: A staircase of more steps is searched block by block.
LONG = 64

_END: Key = (sys.maxsize, 0)


class Staircase:
    """All candidates in a :class:`StampTree`, and their lower left staircase in arrays.

    A *step* is a candidate whose efficiency is below that of all with a lower key. The score never
    falls as last access or efficiency rises (:class:`Utility`), so every candidate scores at least
    as much as a step ahead of it, and the ends of the staircase are the earliest last access and
    the lowest efficiency of all.

    ``lowest`` is O(k) for k steps, O(sqrt k) and up where they are many. ``add`` and ``remove`` are
    O(log n) for each step that comes or goes; what is neither lowest nor early makes none.
    """

    def __init__(self) -> None:
        self._tree = StampTree()
        self._steps = AccessOrder()
        self._efficiencies = array("d")
        # Of all candidates; meaningless while there is none.
        self._last_stamp = 0
        self._highest = -math.inf

    def __len__(self) -> int:
        return len(self._tree)

    def __iter__(self) -> Iterator[tuple[Key, float, int]]:
        """Key, efficiency and id of every candidate, by key."""
        return iter(self._tree)

    def add(self, key: Key, efficiency: float, id: int) -> None:
        """Enter a candidate whose key is not there yet."""
        self._tree.add(key, efficiency, id)
        if not self.is_filled:
            self._last_stamp, self._highest = key[0], efficiency
        else:
            if key[0] > self._last_stamp:
                self._last_stamp = key[0]
            if efficiency > self._highest:
                self._highest = efficiency
        at = self._steps.place(*key)
        if at and self._efficiencies[at - 1] <= efficiency:
            return
        end = at
        while end < len(self._efficiencies) and self._efficiencies[end] >= efficiency:
            end += 1
        self._replace(at, end, [(key, efficiency, id)])

    def remove(self, key: Key) -> None:
        """Take out the candidate with ``key``.

        Raises:
            KeyError: there is none.
        """
        efficiency = self._tree.remove(key)
        if len(self._tree):
            if key[0] == self._last_stamp:
                self._last_stamp = self._tree.last_stamp
            if efficiency == self._highest:
                self._highest = self._tree.highest_efficiency
        at = self._steps.place(*key)
        if self._key(at) != key:
            return
        below = self._efficiencies[at - 1] if at else math.inf
        before = self._key(at + 1)
        self._replace(at, at + 1, self._tree.steps_down(key, before, below))

    @property
    def is_filled(self) -> bool:
        """Whether there is any candidate."""
        return bool(self._efficiencies)

    @property
    def steps(self) -> int:
        """Candidates that no other one undercuts."""
        return len(self._efficiencies)

    def bounds(self) -> tuple[int, int, float, float]:
        """Earliest and latest last access, lowest and highest efficiency of all candidates.

        There must be one.
        """
        return self._steps.stamps[0], self._last_stamp, self._efficiencies[-1], self._highest

    def outermost(self) -> tuple[int, int, int, int]:
        """Ids of candidates that :meth:`bounds` are those of; there must be one."""
        ids = self._steps.ids
        return ids[0], self._tree.last_id, ids[-1], self._tree.highest_id

    def lowest(self, utility: Utility) -> tuple[float, int, int]:
        """Score, order and id of the candidate of lowest score, and of lowest order among equals.

        There must be one.

        Args:
            utility: with bounds that hold all candidates.
        """
        stamps, orders = self._steps.stamps, self._steps.orders
        if len(stamps) <= LONG:
            scores = utility.scores(stamps, self._efficiencies)
            lowest = min(scores)
            at = scores.index(lowest)
            found = [at] if scores.count(lowest) == 1 else _places(scores, lowest)
        else:
            lowest, found = self._lowest_by_blocks(utility)
            at = found[0]
        if len(found) > 1:
            at = min(found, key=lambda at: orders[at])
        order, id = orders[at], self._steps.ids[at]
        last = self._last_stamp
        if not utility.tells_ticks(last):
            for step in found:
                stamp = stamps[step] + 1
                if stamp <= last and utility.score(stamp, self._efficiencies[step]) <= lowest:
                    # What is no step may score the same.
                    order, id = self._tree.first_of_equals(utility, lowest, order, id)
                    break
        return lowest, order, id

    def _lowest_by_blocks(self, utility: Utility) -> tuple[float, list[int]]:
        """The lowest score and the steps that have it."""
        stamps, efficiencies = self._steps.stamps, self._efficiencies
        length = len(stamps)
        size = isqrt(length)
        starts = range(0, length, size)
        ends = [efficiencies[min(start + size, length) - 1] for start in starts]
        corners = utility.scores(stamps[::size], ends)
        lowest = math.inf
        found: list[int] = []
        for corner, start in sorted(zip(corners, starts, strict=True)):
            if corner > lowest:
                break
            block = slice(start, start + size)
            scores = utility.scores(stamps[block], efficiencies[block])
            low = min(scores)
            if low < lowest:
                lowest, found = low, []
            if low == lowest:
                found += [start + at for at in _places(scores, low)]
        return lowest, found

    def _key(self, at: int) -> Key:
        """The key of a step, of none beyond the last."""
        steps = self._steps
        return (steps.stamps[at], steps.orders[at]) if at < len(steps) else _END

    def _replace(self, at: int, end: int, steps: list[tuple[Key, float, int]]) -> None:
        self._steps.replace(at, end, [(*key, id) for key, _, id in steps])
        self._efficiencies[at:end] = array("d", [efficiency for _, efficiency, _ in steps])

    def _check(self) -> None:
        self._tree._check()
        steps, below = [], math.inf
        for key, efficiency, id in self._tree:
            if efficiency < below:
                steps.append((key, efficiency, id))
                below = efficiency
        self._steps._check()
        kept = [
            (self._key(at), efficiency, self._steps.ids[at])
            for at, efficiency in enumerate(self._efficiencies)
        ]
        assert kept == steps, "the staircase is not that of the candidates"
        if steps:
            assert self._last_stamp == self._tree.last_stamp, "stale latest last access"
            assert self._highest == self._tree.highest_efficiency, "stale highest efficiency"


def _places(scores: list[float], score: float) -> list[int]:
    return [at for at, value in enumerate(scores) if value == score]
