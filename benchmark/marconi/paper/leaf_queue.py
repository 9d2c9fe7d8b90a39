"""Least recently used leaves first, with the ties resolved as the published binary heap does.

The published simulator heapifies all leaves for every evict call. Where the oldest leaf is the only
one of its age that order does not matter, so a lazy queue answers; only where two leaves of the
same age meet at the top is the published heap built again, from the untouched tree.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, Self, TypeVar


class LruNode(Protocol):
    """What the queue needs of a node; the root is the node without a parent."""

    last_access: int
    queued: bool

    @property
    def parent(self) -> Self | None:
        """The node above; None for the root and for a node that has left the tree."""

    @property
    def children(self) -> Mapping[bytes, Self]:
        """The nodes below, in map order."""


NodeT = TypeVar("NodeT", bound=LruNode)


class LeafQueue(Generic[NodeT]):
    """Plans the victims of an evict call by LRU over leaves (specification 5, V1)."""

    def __init__(self, node_bytes: Callable[[NodeT], int]) -> None:
        self._node_bytes = node_bytes
        # Stamps are renewed far oftener than read: an entry may be older than its node's stamp.
        self._heap: list[tuple[int, int, NodeT]] = []
        self._serial = 0

    def offer(self, node: NodeT) -> None:
        """Note that a node may be a leaf now."""
        if not node.queued and not node.children:
            self._push(node)

    def plan(self, root: NodeT, wanted: int | float) -> list[NodeT]:
        """The victims, oldest first, until they free ``wanted`` bytes.

        The caller must take all of them out of the tree: a victim keeps its mark as queued, so that
        it is not offered again when its children go.
        """
        victims = self._plan_unless_tied(root, wanted)
        return self._plan_by_heap(root, wanted) if victims is None else victims

    def _push(self, node: NodeT) -> None:
        node.queued = True
        heapq.heappush(self._heap, (node.last_access, self._serial, node))
        self._serial += 1

    def _plan_unless_tied(self, root: NodeT, wanted: int | float) -> list[NodeT] | None:
        victims: list[NodeT] = []
        gone: dict[int, int] = {}
        freed = 0
        more = self._bring_leaf_to_top(gone)
        while more and freed < wanted:
            oldest, _, node = heapq.heappop(self._heap)
            victims.append(node)
            more = self._bring_leaf_to_top(gone)
            if more and self._heap[0][0] == oldest:
                for victim in victims:
                    self._push(victim)
                return None
            freed += self._node_bytes(node)
            parent = node.parent
            if parent is None or parent is root:
                continue
            gone[id(parent)] = gone.get(id(parent), 0) + 1
            if len(parent.children) == gone[id(parent)] and not parent.queued:
                # Pushed with its true stamp, it leaves a living leaf at the top.
                self._push(parent)
                more = True
        return victims

    def _bring_leaf_to_top(self, gone: Mapping[int, int]) -> bool:
        """Make the top entry a living leaf with its true stamp; False if there is none."""
        heap = self._heap
        while heap:
            stamp, _, node = heap[0]
            if node.parent is None or len(node.children) > gone.get(id(node), 0):
                heapq.heappop(heap)
                node.queued = False
            elif stamp != node.last_access:
                heapq.heapreplace(heap, (node.last_access, self._serial, node))
                self._serial += 1
            else:
                return True
        return False

    def _plan_by_heap(self, root: NodeT, wanted: int | float) -> list[NodeT]:
        heap = _leaves(root)
        heapq.heapify(heap)
        victims: list[NodeT] = []
        gone: dict[int, int] = {}
        freed = 0
        while heap and freed < wanted:
            node = heapq.heappop(heap).node
            victims.append(node)
            freed += self._node_bytes(node)
            parent = node.parent
            if parent is None or parent is root:
                continue
            gone[id(parent)] = gone.get(id(parent), 0) + 1
            if len(parent.children) == gone[id(parent)]:
                heapq.heappush(heap, _Aged(parent))
        return victims


class _Aged(float, Generic[NodeT]):
    """A leaf that compares by its stamp alone; a float, since the heap compares those fast."""

    __slots__ = ("node",)
    node: NodeT

    def __new__(cls, node: NodeT) -> Self:
        aged = super().__new__(cls, node.last_access)
        aged.node = node
        return aged


def _leaves(root: NodeT) -> list[_Aged[NodeT]]:
    leaves: list[_Aged[NodeT]] = []
    stack = list(root.children.values())[::-1]
    while stack:
        node = stack.pop()
        if node.children:
            stack.extend(list(node.children.values())[::-1])
        else:
            leaves.append(_Aged(node))
    return leaves
