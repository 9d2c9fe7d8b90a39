"""The candidates of Marconi's eviction, their FLOP efficiency kept, scored as one vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paper.tree import Node


@dataclass(slots=True)
class Choice:
    """The node with the lowest score, and how clear the choice was."""

    node: Node
    candidates: int
    score: float
    margin: float | None
    """Distance to the second lowest score; None if there is no other, or nobody asked."""


class ScoreTable:
    """All nodes with at most one child, in no particular order (specification 5, V2 and V3)."""

    def __init__(self, efficiency: Callable[[int, int], float]) -> None:
        self._efficiency_of = efficiency
        self._nodes: list[Node] = []
        self._efficiency: NDArray[np.float64] = np.zeros(64)
        self._last_access: NDArray[np.float64] = np.zeros(64)

    def changed(self, node: Node) -> None:
        """Enter a node, renew its numbers, or drop it if it has two children or more."""
        if len(node.children) > 1:
            self.removed(node)
            return
        if node.slot < 0:
            node.slot = len(self._nodes)
            self._nodes.append(node)
            if node.slot == len(self._efficiency):
                self._efficiency = np.resize(self._efficiency, 2 * node.slot)
                self._last_access = np.resize(self._last_access, 2 * node.slot)
        self._efficiency[node.slot] = self._efficiency_of(node.start, node.end)
        self._last_access[node.slot] = node.last_access

    def removed(self, node: Node) -> None:
        """Drop a node, if it is a candidate."""
        slot, node.slot = node.slot, -1
        if slot < 0:
            return
        moved = self._nodes.pop()
        if moved is node:
            return
        last = len(self._nodes)
        self._nodes[slot], moved.slot = moved, slot
        self._efficiency[slot] = self._efficiency[last]
        self._last_access[slot] = self._last_access[last]

    def touched(self, node: Node) -> None:
        """Take over a renewed stamp."""
        if node.slot >= 0:
            self._last_access[node.slot] = node.last_access

    def lowest(self, now: int, alpha: float, *, with_margin: bool) -> Choice | None:
        """The candidate with the lowest ``alpha * efficiency + recency``; ties go by pre-order.

        Both terms are min-max normalised. The order of the operations is the published one: two
        of the golden decisions hang on the last bit.
        """
        count = len(self._nodes)
        if count == 0:
            return None
        recency = 1.0 / (now - self._last_access[:count])
        scores = alpha * _normalised(self._efficiency[:count])
        scores += _normalised(recency)
        slot = int(scores.argmin())
        lowest = scores[slot]
        tied = np.flatnonzero(scores == lowest)
        if len(tied) > 1:
            node = min((self._nodes[index] for index in tied), key=Node.rank)
        else:
            node = self._nodes[slot]
        margin = None
        if with_margin and count > 1:
            margin = float(np.partition(scores, 1)[1] - lowest)
        return Choice(node, count, float(lowest), margin)


def _normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = values.min(), values.max()
    if low == high:
        return np.ones(len(values))
    scaled: NDArray[np.float64] = (values - low) / (high - low)
    return scaled
