"""A shadow tree whose KV and states lie on the device, on the host, or on both."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Container, Iterator
from typing import cast

from sglang.srt.mem_cache.marconi.eviction.policy import orders_host
from sglang.srt.mem_cache.marconi.prefix import HostPool, Pool
from sglang.srt.mem_cache.marconi.tuning.leaf_heap import LeafHeap
from sglang.srt.mem_cache.marconi.tuning.shadow_node import ShadowNode
from sglang.srt.mem_cache.marconi.tuning.shadow_tree import ShadowTree
from sglang.srt.mem_cache.marconi.tuning.shadow_view import ShadowView


class HostedNode(ShadowNode):
    """A node of which the device or the host has the KV, or both.

    Attributes:
        on_device, on_host: who has its KV.
        state_on_host: the host has its state; ``has_state`` says it of the device.
        children_on_device: children whose KV the device has.
        inserts: walks of inserting requests over it, by which SGLang decides what to copy.
        host_locks: copies back to the device that are under way.
    """

    __slots__ = (
        *("on_device", "on_host", "state_on_host"),
        *("children_on_device", "inserts", "host_locks"),
    )

    def __init__(self, id: int, parent: ShadowNode | None, hashes: array[int], start: int) -> None:
        super().__init__(id, parent, hashes, start)
        self.on_device = True
        self.on_host = self.state_on_host = False
        self.children_on_device = self.inserts = self.host_locks = 0

    @property
    def survives(self) -> bool:
        return self.has_state or self.state_on_host

    @property
    def is_evictable_leaf(self) -> bool:
        free = self.on_device and not self.locks and self.parent is not None
        return free and not self.children_on_device

    @property
    def is_host_leaf(self) -> bool:
        """The host may forget its KV, and with it the node."""
        alone = self.on_host and not self.on_device and not self.children
        free = not self.locks and not self.host_locks
        return alone and free and self.parent is not None


class HostedView(ShadowView):
    """What a policy is told; one that orders the host also learns what lies there alone."""

    def _on_host(self, node: ShadowNode) -> tuple[bool, bool]:
        if not orders_host(self.policy):
            return False, False
        hosted = cast(HostedNode, node)
        state = hosted.state_on_host and not hosted.has_state
        return state, hosted.on_host and not hosted.on_device


class HostedTree(ShadowTree):
    """What SGLang 0.5.23's tree core and the policy's view of it do with HiCache.

    Attributes:
        on_both: nodes whose KV both have, the oldest copy first; some may be so no longer.
    """

    node_type = HostedNode
    view_type = HostedView

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.on_both: dict[int, HostedNode] = {}
        self._host_states: OrderedDict[int, HostedNode] = OrderedDict()
        self._loose: OrderedDict[int, HostedNode] = OrderedDict()
        self._host_leaves: LeafHeap[HostedNode] = LeafHeap(lambda node: node.is_host_leaf)

    # -- walks

    def insert(
        self, node: ShadowNode, hashes: array[int], blocks: int
    ) -> tuple[ShadowNode, bool, int]:
        """See :class:`ShadowTree`; KV that the host alone had counts as new to the tree."""
        tail, fresh, added = super().insert(node, hashes, blocks)
        self._not_on_host_alone(tail)
        for below in path(tail, node):
            if not below.on_device:
                self.put_on_device(below)
                self.note_both(below)
                added += below.end - below.start
        return tail, fresh, added

    def lock(self, node: ShadowNode) -> None:
        super().lock(node)
        self._mark_device_leaf(node)

    def unlock(self, node: ShadowNode) -> None:
        self._mark_device_leaf(node)
        super().unlock(node)
        lowest = _lowest_on_device(node)
        if lowest.parent is not None:
            self._queue_leaf(lowest)

    # -- what moves

    def put_on_device(self, node: HostedNode) -> None:
        """The device has the KV of ``node`` too."""
        node.on_device = True
        cast(HostedNode, node.parent).children_on_device += 1
        if node.id in self._host_states:
            self._loose[node.id] = node
        self._mark_both(node)
        self._queue_leaf(node)

    def put_state_on_device(self, node: HostedNode) -> None:
        """The device has the state of ``node`` too."""
        node.has_state = True
        self._not_on_host_alone(node)
        self._states[node.id] = node
        self.view.state_came_or_went(node)

    def demote(self, node: HostedNode) -> None:
        """Take the KV of ``node`` off the device, whose copy the host has, and its state."""
        if node.has_state:
            self.drop_state(node)
        node.on_device = False
        self._loose.pop(node.id, None)
        parent = cast(HostedNode, node.parent)
        parent.children_on_device -= 1
        self._mark_both(node)
        self._queue_leaf(parent)
        self._queue_leaf(node)

    def drop_state(self, node: ShadowNode) -> None:
        super().drop_state(node)
        hosted = cast(HostedNode, node)
        if hosted.state_on_host:
            self._host_states[node.id] = hosted
            if hosted.on_device:
                self._loose[node.id] = hosted

    def forget_state(self, node: HostedNode) -> None:
        """Take the state of ``node`` off the host."""
        node.state_on_host = False
        self._not_on_host_alone(node)
        self.view.state_came_or_went(node)

    def note_both(self, node: HostedNode) -> None:
        """The KV of ``node`` lies on both, as far as it does."""
        if node.on_device and node.on_host:
            self.on_both.setdefault(node.id, node)

    def delete_leaf(self, node: ShadowNode) -> None:
        hosted = cast(HostedNode, node)
        cast(HostedNode, node.parent).children_on_device -= hosted.on_device
        self.on_both.pop(node.id, None)
        self._not_on_host_alone(node)
        super().delete_leaf(node)

    # -- whom the host forgets

    def host_leaf(self) -> HostedNode | None:
        """The least recent leaf that the host may forget."""
        return self._host_leaves.first()

    def host_states(self) -> Iterator[HostedNode]:
        """The nodes whose state the host alone has, the one that went there first at the front."""
        return (node for node in self._host_states.values() if not node.host_locks)

    def loose_state(self) -> HostedNode | None:
        """Of the states that the host alone has while the device has their KV, the first so."""
        return next((node for node in self._loose.values() if not node.host_locks), None)

    def host_victim(self, pool: HostPool, excluding: Container[int]) -> HostedNode | None:
        """Whom the policy would have the host forget."""
        self.view.refresh(self.now)
        prefix = self.policy.victim(cast(Pool, pool), self.now, excluding)
        return None if prefix is None else cast(HostedNode, self._nodes[prefix.id])

    # -- internals

    def _add(self, parent: ShadowNode, hashes: array[int], start: int, end: int) -> ShadowNode:
        node = super()._add(parent, hashes, start, end)
        cast(HostedNode, parent).children_on_device += 1
        return node

    def _split(self, lower: ShadowNode, at: int) -> ShadowNode:
        upper, below = cast(HostedNode, super()._split(lower, at)), cast(HostedNode, lower)
        upper.on_device, upper.on_host = below.on_device, below.on_host
        upper.children_on_device = int(below.on_device)
        upper.inserts = below.inserts
        self.note_both(upper)
        return upper

    def _not_on_host_alone(self, node: ShadowNode) -> None:
        self._host_states.pop(node.id, None)
        self._loose.pop(node.id, None)

    def _mark_device_leaf(self, node: ShadowNode) -> None:
        """Below it are nodes on the host alone, and it may leave the device by itself."""
        lowest = _lowest_on_device(node)
        if lowest is not node:
            self.view.mark(lowest)

    def _mark_both(self, node: HostedNode) -> None:
        """Whether it, and what it lies below, may leave the device changed."""
        assert node.parent is not None
        self.view.mark(node)
        self.view.mark(node.parent)

    def _queue_leaf(self, node: ShadowNode) -> None:
        super()._queue_leaf(node)
        self._host_leaves.offer(cast(HostedNode, node))


def _lowest_on_device(node: ShadowNode) -> HostedNode:
    """The first node from ``node`` up whose KV the device has; the root counts as such."""
    hosted = cast(HostedNode, node)
    while not hosted.on_device:
        hosted = cast(HostedNode, hosted.parent)
    return hosted


def path(node: ShadowNode, above: ShadowNode) -> list[HostedNode]:
    """From below ``above``, which lies on the way to the root, down to ``node``."""
    nodes = []
    while node is not above:
        assert node.parent is not None
        nodes.append(cast(HostedNode, node))
        node = node.parent
    return nodes[::-1]
