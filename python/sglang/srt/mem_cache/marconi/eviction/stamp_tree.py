"""A B+-tree of candidates by last access that knows the extremes of efficiency below each node."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any

from sglang.srt.mem_cache.marconi.eviction.utility import Utility

#: Most children of a node.
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

    def summarise_without(self, at: int, low: float, high: float, order: int) -> bool:
        """Take note that the child at ``at`` lost a candidate; whether its summary changed."""
        child = self.below[at]
        changed = False
        if self.lows[at] == low:
            self.lows[at] = lowest = min(child.lows)
            changed = lowest != low
        if self.highs[at] == high:
            self.highs[at] = highest = max(child.highs)
            changed = changed or highest != high
        if self.orders[at] == order:
            self.orders[at] = min(child.orders)
            changed = True
        return changed

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
    """Candidates ordered by last access; every node knows the extremes of efficiency below it.

    Updates and every property are O(log n), each step that :meth:`steps_down` finds too.
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

    def remove(self, key: Key) -> float:
        """Take out the candidate with ``key``.

        Returns:
            Its efficiency.

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
            elif not parent.summarise_without(at, low, high, order):
                return low
            node = parent
        while not self._root.is_leaf and len(self._root.keys) <= 1:
            self._root = self._root.below[0] if self._root.below else _Node([], [], None, [], [])
        return low

    @property
    def last_stamp(self) -> int:
        """Latest last access of all candidates, of which there must be one."""
        stamp: int = self._last_leaf().keys[-1][0]
        return stamp

    @property
    def last_id(self) -> int:
        """Id of the candidate of the highest key; there must be one."""
        id: int = self._last_leaf().below[-1]
        return id

    @property
    def highest_id(self) -> int:
        """Id of a candidate of the highest efficiency; there must be one."""
        below: Any = self._root
        while isinstance(below, _Node):
            below = below.below[below.highs.index(max(below.highs))]
        id: int = below
        return id

    @property
    def highest_efficiency(self) -> float:
        """Of all candidates, of which there must be one."""
        return max(self._root.highs)

    def steps_down(self, after: Key, before: Key, below: float) -> list[tuple[Key, float, int]]:
        """Key, efficiency and id of each candidate that undercuts all those ahead of it.

        Args:
            after, before: the keys that it must lie between, themselves excluded.
            below: efficiency that the first of them must undercut.
        """
        found: list[tuple[Key, float, int]] = []
        path = []
        node = self._root
        while node.highs is not node.lows:
            at = max(bisect_right(node.keys, after) - 1, 0)
            path.append((node, at + 1))
            node = node.below[at]
        path.append((node, bisect_right(node.keys, after)))
        while path:
            node, start = path.pop()
            keys, lows = node.keys, node.lows
            if start < len(keys) and keys[start] >= before:
                break
            for at, low in enumerate(lows[start:], start):
                if low < below:
                    if keys[at] >= before:
                        return found
                    if node.highs is not lows:
                        path.append((node, at + 1))
                        path.append((node.below[at], 0))
                        break
                    found.append((keys[at], low, node.below[at]))
                    below = low
        return found

    def first_of_equals(
        self, utility: Utility, lowest: float, order: int, id: int
    ) -> tuple[int, int]:
        """Order and id of the first candidate with the score ``lowest``.

        Args:
            lowest: no candidate's score is lower.
            order, id: of one that has it.
        """
        score = utility.score
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            is_leaf = node.highs is node.lows
            for at, low in enumerate(node.lows):
                if node.orders[at] < order and score(node.keys[at][0], low) <= lowest:
                    if is_leaf:
                        order, id = node.orders[at], node.below[at]
                    else:
                        nodes.append(node.below[at])
        return order, id

    def _last_leaf(self) -> _Node:
        node = self._root
        while node.highs is not node.lows:
            node = node.below[-1]
        return node

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
