"""A B+-tree of candidates by last access that finds the lowest score without visiting them all."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Any

from sglang.srt.mem_cache.marconi.utility import Utility, normalise, recency

#: Most children of a node. A decision reads all summaries of a node, an update few of them.
FANOUT = 24

#: Last access (logical tick) and order of appearance; no two candidates share both.
Key = tuple[int, int]


class _Node:
    """Parallel lists, one item a child: a candidate in a leaf, a node elsewhere.

    Attributes:
        keys: of candidates, or a lower bound of the keys below each child; ascending.
        lows, highs: lowest and highest efficiency below each child; in a leaf one and the same
            list.
        orders: lowest order below each child.
        below: ids of candidates, or child nodes.
    """

    __slots__ = ("below", "highs", "keys", "lows", "orders")

    def __init__(
        self,
        keys: list[Key],
        lows: list[float],
        highs: list[float] | None,
        orders: list[int],
        below: list[Any],
    ) -> None:
        self.keys = keys
        self.lows = lows
        self.highs = lows if highs is None else highs
        self.orders = orders
        self.below = below

    @property
    def is_leaf(self) -> bool:
        return self.highs is self.lows

    def insert(self, at: int, key: Key, low: float, high: float, order: int, below: Any) -> None:
        self.keys.insert(at, key)
        self.lows.insert(at, low)
        if self.highs is not self.lows:
            self.highs.insert(at, high)
        self.orders.insert(at, order)
        self.below.insert(at, below)

    def insert_node(self, at: int, child: _Node) -> None:
        self.insert(at, child.keys[0], min(child.lows), max(child.highs), min(child.orders), child)

    def delete(self, at: int) -> None:
        del self.keys[at], self.lows[at], self.orders[at], self.below[at]
        if self.highs is not self.lows:
            del self.highs[at]

    def summarise(self, at: int) -> None:
        child = self.below[at]
        self.keys[at] = child.keys[0]
        self.lows[at] = min(child.lows)
        self.highs[at] = max(child.highs)
        self.orders[at] = min(child.orders)

    def cut(self, at: int) -> _Node:
        """Split off the children from ``at`` on."""
        highs = None if self.is_leaf else self.highs[at:]
        right = _Node(self.keys[at:], self.lows[at:], highs, self.orders[at:], self.below[at:])
        for values in (self.keys, self.lows, self.orders, self.below):
            del values[at:]
        if highs is not None:
            del self.highs[at:]
        return right

    def append_all(self, right: _Node) -> None:
        """Take over the children of the next node of the same level."""
        if not self.is_leaf:
            self.highs += right.highs
        self.keys += right.keys
        self.lows += right.lows
        self.orders += right.orders
        self.below += right.below


class StampTree:
    """Candidates ordered by last access; every node knows the lowest efficiency below it.

    The score never falls as last access or efficiency rises (:class:`Utility`), so the score of a
    node's corner, its earliest last access with its lowest efficiency, is a lower bound of all
    scores below it. :meth:`lowest` passes over a node only if that bound exceeds the score of a
    candidate already found, or equals it while no order below is lower: whatever is passed over
    would lose to that candidate in a scan too, ties included, because bounds and scores are the
    same function's floats. No assumption on which candidates may tie is needed.

    A corner can beat the lowest score only if its node holds a step of the staircase, the
    candidates that no other one undercuts in both coordinates: an earlier step below the corner
    would bound it. So k steps cost O(k log n), plus what ties with the lowest score in nodes with
    lower orders. Updates cost O(log n).
    """

    def __init__(self) -> None:
        self._root = _Node([], [], None, [], [])
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Key, float, int]]:
        """Key, efficiency and id of every candidate, by key."""
        stack = [self._root]
        while stack:
            node = stack.pop()
            if node.is_leaf:
                yield from zip(node.keys, node.lows, node.below, strict=True)
            else:
                stack.extend(reversed(node.below))

    def add(self, key: Key, efficiency: float, id: int) -> None:
        """Enter a candidate whose key is not in the tree."""
        order = key[1]
        path = []
        node = self._root
        while node.highs is not node.lows:
            at = bisect_right(node.keys, key) - 1
            if at < 0:
                at = 0
                node.keys[0] = key
            if efficiency < node.lows[at]:
                node.lows[at] = efficiency
            if efficiency > node.highs[at]:
                node.highs[at] = efficiency
            if order < node.orders[at]:
                node.orders[at] = order
            path.append((node, at))
            node = node.below[at]
        at = bisect_left(node.keys, key)
        node.insert(at, key, efficiency, efficiency, order, id)
        self._count += 1
        while len(node.keys) > FANOUT:
            # Stamps mostly arrive in ascending order: a node that grows at its end stays full.
            right = node.cut(FANOUT if at == FANOUT else FANOUT // 2)
            if not path:
                self._root = _Node([], [], [], [], [])
                self._root.insert_node(0, node)
                self._root.insert_node(1, right)
                return
            parent, at = path.pop()
            parent.summarise(at)
            at += 1
            parent.insert_node(at, right)
            node = parent

    def remove(self, key: Key) -> None:
        """Take out the candidate with ``key``.

        Raises:
            KeyError: there is none.
        """
        path = []
        node = self._root
        while node.highs is not node.lows:
            at = bisect_right(node.keys, key) - 1
            path.append((node, at))
            node = node.below[at]
        at = bisect_left(node.keys, key)
        if at == len(node.keys) or node.keys[at] != key:
            raise KeyError(key)
        low = high = node.lows[at]
        order = key[1]
        node.delete(at)
        self._count -= 1
        for parent, at in reversed(path):
            if not node.keys:
                parent.delete(at)
            elif len(node.keys) < FANOUT // 4 and _merge(parent, at):
                pass
            elif parent.lows[at] == low or parent.highs[at] == high or parent.orders[at] == order:
                parent.summarise(at)
            else:
                return
            node = parent
        while not self._root.is_leaf and len(self._root.keys) <= 1:
            self._root = self._root.below[0] if self._root.below else _Node([], [], None, [], [])

    def lowest(self, now: int, eff_weight: float) -> int | None:
        """Id of the candidate of lowest score, and of lowest order among those with that score."""
        if not self._count:
            return None
        root = self._root
        oldest = leaf = root
        while oldest.highs is not oldest.lows:
            oldest = oldest.below[0]
        while leaf.highs is not leaf.lows:
            leaf = leaf.below[-1]
        first, last = oldest.keys[0][0], leaf.keys[-1][0]
        utility = Utility(
            now,
            eff_weight,
            recency(now, first),
            recency(now, last),
            min(root.lows),
            max(root.highs),
        )
        score = utility.score
        # The two ends of the staircase leave little to search.
        leaf = root
        while True:
            at = leaf.lows.index(min(leaf.lows))
            if leaf.highs is leaf.lows:
                break
            leaf = leaf.below[at]
        best, order = score(leaf.keys[at][0], leaf.lows[at]), leaf.orders[at]
        id: int = leaf.below[at]
        end = score(first, oldest.lows[0])
        if (end, oldest.orders[0]) < (best, order):
            best, order, id = end, oldest.orders[0], oldest.below[0]
        horizon, ceiling = _limits(utility, first, last, best)
        numbers = itertools.count()
        corners = [(0.0, -1, 0, math.inf, root)]
        while corners:
            bound, lowest_order, _, undercut, node = heappop(corners)
            if bound > best or (bound == best and lowest_order >= order):
                break
            is_leaf = node.highs is node.lows
            lost_from = horizon
            for at, low in enumerate(node.lows):
                if low >= ceiling:
                    continue
                stamp = node.keys[at][0]
                if low < undercut:
                    before, undercut, lost_from = undercut, low, horizon
                else:
                    # An earlier candidate saves no more: this one can tie at best.
                    before = undercut
                    if stamp >= lost_from:
                        continue
                    if score(stamp, undercut) > best:
                        lost_from = stamp
                        continue
                if stamp >= horizon:
                    break
                bound = score(stamp, low)
                if bound > best or (bound == best and node.orders[at] >= order):
                    continue
                if not is_leaf:
                    corner = (bound, node.orders[at], next(numbers), before, node.below[at])
                    heappush(corners, corner)
                    continue
                order, id = node.orders[at], node.below[at]
                if bound < best:
                    best = bound
                    horizon, ceiling = _limits(utility, first, last, best)
        return id

    def _check(self) -> None:
        assert self._check_below(self._root, None, None) == self._count

    def _check_below(self, node: _Node, floor: Key | None, roof: Key | None) -> int:
        """Verify all below ``node``, whose keys lie in [floor, roof), and count candidates."""
        assert len(node.keys) <= FANOUT, "a node holds too much"
        assert (node.highs is node.lows) == node.is_leaf
        assert node.keys == sorted(set(node.keys)), "keys out of order"
        for values in (node.lows, node.highs, node.orders, node.below):
            assert len(values) == len(node.keys), "parallel lists differ in length"
        if node is not self._root:
            assert node.keys, "an empty node below the root"
            assert floor is None or node.keys[0] >= floor, "a key below its lower bound"
            assert roof is None or node.keys[-1] < roof, "a key beyond its node"
        if node.is_leaf:
            assert node.orders == [order for _, order in node.keys]
            return len(node.keys)
        assert node is not self._root or len(node.keys) > 1, "a root of one child"
        count = 0
        for at, child in enumerate(node.below):
            assert node.lows[at] == min(child.lows), "stale lowest efficiency"
            assert node.highs[at] == max(child.highs), "stale highest efficiency"
            assert node.orders[at] == min(child.orders), "stale lowest order"
            beyond = node.keys[at + 1] if at + 1 < len(node.keys) else roof
            count += self._check_below(child, node.keys[at], beyond)
        depths = {self._depth(child) for child in node.below}
        assert len(depths) == 1, "leaves at different depths"
        return count

    def _depth(self, node: _Node) -> int:
        depth = 0
        while not node.is_leaf:
            node = node.below[0]
            depth += 1
        return depth


def _merge(parent: _Node, at: int) -> bool:
    """Join the thin child at ``at`` with a neighbour, if both leave room to grow."""
    for left in (at - 1, at):
        if left < 0 or left + 1 == len(parent.below):
            continue
        node, right = parent.below[left], parent.below[left + 1]
        if len(node.keys) + len(right.keys) <= FANOUT * 3 // 4:
            node.append_all(right)
            parent.delete(left + 1)
            parent.summarise(left)
            return True
    return False


def _limits(utility: Utility, first: int, last: int, best: float) -> tuple[int, float]:
    """A last access and an efficiency from which on all scores exceed ``best``.

    Both are guessed by inverting the score with a little slack, then put to the test with the
    score itself: a guess that fails the test is replaced by a limit that excludes nothing.
    """
    slack = 1e-12
    low, high = utility.efficiency_low, utility.efficiency_high
    ceiling = math.inf
    if utility.eff_weight > 0.0 and high > low:
        rest = (
            best + slack - normalise(utility.recency_low, utility.recency_low, utility.recency_high)
        )
        guess = math.nextafter(low + rest / utility.eff_weight * (high - low), math.inf)
        if utility.score(first, guess) > best:
            ceiling = guess
    horizon = last + 1
    rest = best + slack - utility.eff_weight * normalise(low, low, high)
    recent = utility.recency_low + rest * (utility.recency_high - utility.recency_low)
    if 0.0 < recent < 1.0:
        youngest = utility.now - int(1.0 / recent) + 1
        if utility.score(youngest, low) > best:
            horizon = youngest
    return horizon, ceiling
