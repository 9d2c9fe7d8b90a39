"""Leaves of a shadow tree that may be evicted, in the order of LRU."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

from sglang.srt.mem_cache.marconi.tuning.shadow_node import ShadowNode

Node = TypeVar("Node", bound=ShadowNode)


class LeafHeap(Generic[Node]):
    """The leaf that was touched least recently; O(log leaves) amortised.

    Entries are looked at when they come first: who may not go any more is dropped, and who was
    touched since is put back.

    Args:
        may_go: a node may be evicted as a leaf now.
    """

    def __init__(self, may_go: Callable[[Node], bool]) -> None:
        self._may_go = may_go
        self._heap: list[tuple[int, int, Node]] = []
        self._queued: set[int] = set()

    def offer(self, node: Node) -> None:
        """``node`` may have become such a leaf."""
        if node.id not in self._queued and self._may_go(node):
            self._queued.add(node.id)
            heapq.heappush(self._heap, (node.touched, node.id, node))

    def first(self) -> Node | None:
        """``None`` if there is no such leaf; the answer stays until it may not go any more."""
        heap = self._heap
        while heap:
            touched, id, node = heap[0]
            if not self._may_go(node):
                heapq.heappop(heap)
                self._queued.remove(id)
            elif node.touched != touched:
                heapq.heapreplace(heap, (node.touched, id, node))
            else:
                return node
        return None
