"""Evictable leaves in SGLang's LRU order, kept from walk to walk instead of sorted at each."""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.evict_policy import LRUStrategy

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

_Entry = tuple[float, int, Any]


class LeafOrder:
    """What stock's walk over KV leaves offers under LRU, in O(log n) amortised a victim.

    Stock builds a heap of all leaves at the start of each walk, and adds the parent of a victim if
    that became a leaf. This heap stays; its times are lower bounds, because a node's last access
    only ever moves on, and are corrected where a node comes to the top. ``next`` leaves out what
    stock's heap would not hold: leaves that came during the walk other than as a victim's parent.
    """

    def __init__(self, leaves: set[UnifiedTreeNode]) -> None:
        """Start with ``leaves``, the tree's own set."""
        self._leaves = leaves
        self._clock = 0
        self._started = 0
        self._aside: dict[int, _Entry] = {}
        self._joined: set[int] = set()
        self._last: UnifiedTreeNode | None = None
        self._since: dict[int, int] = {}
        self._collect()

    def became_leaf(self, node: UnifiedTreeNode) -> None:
        self._clock += 1
        if node.id not in self._since:
            heappush(self._heap, (node.last_access_time, node.id, node))
            if len(self._heap) > 4 * len(self._leaves) + 1024:
                self._collect()
        self._since[node.id] = self._clock

    def begin_walk(self) -> LeafOrder:
        self._started = self._clock
        return self

    def next(self) -> UnifiedTreeNode | None:
        """The least recently used leaf that this walk has not offered yet."""
        last = self._last
        if last is not None and last.parent is not None and last.parent in self._leaves:
            self._joined.add(last.parent.id)
            again = self._aside.pop(last.parent.id, None)
            if again is not None:
                heappush(self._heap, again)
        heap = self._heap
        while heap:
            time, id, node = heap[0]
            if node not in self._leaves:
                heappop(heap)
                del self._since[id]
            elif time != node.last_access_time:
                heapreplace(heap, (node.last_access_time, id, node))
            else:
                self._aside[id] = heappop(heap)
                if self._since[id] <= self._started or id in self._joined:
                    self._last = node
                    return self._last
        self._last = None
        return None

    def end_walk(self) -> None:
        for entry in self._aside.values():
            if entry[2] in self._leaves:
                heappush(self._heap, entry)
            else:
                del self._since[entry[1]]
        self._aside.clear()
        self._joined.clear()
        self._last = None

    def _collect(self) -> None:
        self._heap: list[_Entry] = [
            (node.last_access_time, node.id, node)
            for node in self._leaves
            if node.id not in self._aside
        ]
        heapify(self._heap)
        kept = [entry[1] for entry in self._heap] + [*self._aside]
        self._since = {id: self._since.get(id, 0) for id in kept}


def keeps_lru_order(tree_core: Any) -> bool:
    """Whether stock's order of KV leaves is LRU and nothing else."""
    return (
        type(tree_core.eviction_strategy) is LRUStrategy
        and not tree_core.enable_session_radix_cache
    )
