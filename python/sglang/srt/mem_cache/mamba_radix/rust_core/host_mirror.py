"""A tree's mirror where KV and states may lie on the host instead, and whose its slots are."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from sglang.srt.mem_cache.mamba_radix.rust_core.mirror import MirrorNode, Segment, TreeMirror
from sglang.srt.mem_cache.marconi.tree import Namespace

#: Slots of a host pool, by token; a tensor in the host's memory.
HostSlots = Any


class HostedNode(MirrorNode):
    """One node of the tree.

    ``kv_locks`` counts the locks of this node and of all below it, as SGLang does: below what lies
    on the host alone the lowest node on the device may be locked too, and have no child there.

    Attributes:
        on_device: its KV lies on the device; on the host alone otherwise.
        host_state: its state lies on the host and not on the device.
        host_kv: slots of its KV's copy on the host, ``None`` without one.
    """

    __slots__ = ("host_kv", "host_state", "on_device")

    def __init__(self, id: int, parent: MirrorNode | None, key: Segment) -> None:
        super().__init__(id, parent, key)
        self.on_device = True
        self.host_state = False
        self.host_kv: HostSlots | None = None

    def has_child_on_device(self) -> bool:
        children: Any = self.children
        return any(child.on_device for child in children.values())


class HostedMirror(TreeMirror):
    """Answers for a tree with a host tier.

    The owner says which host slots it freed, not whose they were: a copy is found by its first.
    Where the copy of a state lies it tells once the device has let go of that state, and it frees
    none before.
    """

    node_class = HostedNode

    def clear(self) -> None:
        super().clear()
        self._kv_at: dict[int, HostedNode] = {}
        self._state_at: dict[int, HostedNode] = {}

    # -- what the owner told

    def learn(
        self, path: Sequence[tuple[int, int, int]], lookup: Segment
    ) -> list[tuple[MirrorNode, MirrorNode | None]]:
        """As for the device alone, but a new node may lie anywhere on the path."""
        learnt = super().learn(path, lookup)
        for fresh, lower in learnt:
            if lower is not None:
                self._split(fresh, lower)
        return learnt

    def _known(self, path: Sequence[tuple[int, int, int]]) -> int:
        """A prefetch can split a node that no lookup has come by."""
        return 0

    def _split(self, upper: Any, lower: Any) -> None:
        upper.on_device = lower.on_device
        upper.kv_locks = lower.kv_locks
        if lower.host_kv is not None:
            slots, tokens = lower.host_kv, len(upper.key)
            self.copied_kv(upper, slots[:tokens])
            self.copied_kv(lower, slots[tokens:])

    def lock(self, node: MirrorNode, kv: int) -> None:
        """Count ``kv`` more locks on the KV of ``node`` and of all above it."""
        above: MirrorNode | None = node
        while above is not None:
            above.kv_locks += kv
            above = above.parent

    def copied_kv(self, node: Any, slots: HostSlots) -> None:
        """The KV of ``node`` has a copy in these host slots."""
        node.host_kv = slots
        self._kv_at[int(slots[0])] = node

    def state_lies_at(self, node: Any, slot: HostSlots) -> None:
        """The state of ``node`` lies in this host slot, and not on the device."""
        self._state_at[int(slot[0])] = node

    def freed_kv(self, slots: HostSlots) -> Any | None:
        """The node whose copy lay in these slots, which is none any more."""
        node = self._kv_at.pop(int(slots[0]), None)
        if node is not None:
            node.host_kv = None
        return node

    def freed_state(self, slot: HostSlots) -> Any | None:
        """The node whose state lay in this slot."""
        return self._state_at.pop(int(slot[0]), None)

    # -- answers

    def descend(self, anchor: MirrorNode, coming: Segment) -> MirrorNode:
        """The last node that a walk from ``anchor`` along ``coming`` enters."""
        node = anchor
        while len(coming):
            child = node.children.get(self._branch(node, coming))
            if child is None:
                break
            node, coming = child, coming[len(child.key) :]
        return node

    def whole_key(self, node: MirrorNode, namespace: Namespace) -> Segment:
        """All tokens from the root to the end of ``node``."""
        parts = []
        while node.parent is not None:
            parts.append(node.key.tokens)
            node = node.parent
        tokens = array("q")
        for part in reversed(parts):
            tokens.extend(part)
        return Segment(tokens, namespace)

    def state_survives(self, node: Any) -> bool:
        return bool(node.has_state or node.host_state)

    def state_on_host_alone(self, node: Any) -> bool:
        return bool(node.host_state)

    def kv_on_host_alone(self, node: Any) -> bool:
        return not node.on_device and node.host_kv is not None

    def is_evictable_leaf(self, node: Any) -> bool:
        if node.parent is None or not node.on_device or node.kv_locks or node.state_locks:
            return False
        return not node.has_child_on_device()

    def device_tokens(self, node: Any) -> int:
        return len(node.key) if node.on_device else 0
