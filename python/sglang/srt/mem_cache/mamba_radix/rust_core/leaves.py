"""SGLang's LRU order of KV leaves, kept beside the Rust core, which sorts them at each walk."""

from __future__ import annotations

from collections.abc import Sequence

from sglang.srt.mem_cache.mamba_radix.lru_leaves import LeafOrder
from sglang.srt.mem_cache.mamba_radix.rust_core.mirror import MirrorNode, TreeMirror

#: Nodes new in a mirror, each with the node that it was split off.
Learnt = Sequence[tuple[MirrorNode, MirrorNode | None]]

#: What the cores keep between the times of a matched node and its parent.
_STEP_UP = 0.00001


class MirrorLeaves:
    """Evictable leaves of a mirror, and the times that SGLang's cores would give its nodes.

    Every lookup and insert stamps its path, so each costs O(nodes of the path).
    """

    def __init__(self, mirror: TreeMirror) -> None:
        self._mirror = mirror
        self.clear()

    def clear(self) -> None:
        self._time = 0.0
        self._leaves: set[MirrorNode] = set()
        self._order: LeafOrder | None = None

    def start_over(self) -> None:
        """Find the leaves of the mirror anew; times stay."""
        self._leaves = {n for n in self._mirror.nodes.values() if self._mirror.is_evictable_leaf(n)}
        self._order = None

    def walk(self) -> LeafOrder:
        """A walk over the leaves, the least recently used first."""
        if self._order is None:
            self._order = LeafOrder(self._leaves)
        return self._order.begin_walk()

    def matched(self, best: MirrorNode, learnt: Learnt) -> None:
        """A lookup found the state of ``best``."""
        for upper, lower in learnt:
            upper.last_access_time = self._tick()
            if lower is not None:
                lower.last_access_time = self._tick()
        time, node = self._tick(), best
        while node.parent is not None:
            node.last_access_time = time
            time -= _STEP_UP
            node = node.parent

    def inserted(self, node: MirrorNode, learnt: Learnt) -> None:
        """An insert walked down to ``node`` and put a state there."""
        below = dict(learnt)
        path = []
        above: MirrorNode | None = node
        while above is not None and above.parent is not None:
            path.append(above)
            above = above.parent
        for walked in reversed(path):
            walked.last_access_time = self._tick()
            lower = below.get(walked)
            if lower is not None:
                lower.last_access_time = self._tick()
        node.last_access_time = self._tick()

    def changed(self, node: MirrorNode) -> None:
        """Children or locks of ``node`` changed."""
        if not self._mirror.is_evictable_leaf(node):
            self._leaves.discard(node)
        elif node not in self._leaves:
            self._leaves.add(node)
            if self._order is not None:
                self._order.became_leaf(node)

    def removed(self, node: MirrorNode) -> None:
        self._leaves.discard(node)
        if node.parent is not None:
            self.changed(node.parent)

    def _tick(self) -> float:
        self._time += 1.0
        return self._time
