"""What a policy knows of one cached prefix: numbers only, never a tree object of one base."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Pool(Enum):
    """The two memories under pressure: KV tokens of attention, state slots of recurrent layers."""

    KV = "kv"
    STATE = "state"

    # Enum's own hashes the name, in Python.
    __hash__ = object.__hash__


@dataclass(slots=True, eq=False)
class CachedPrefix:
    """One node of the radix tree that could be a victim.

    Depths are in tokens from the root, so ``0 <= reuse_from <= exclusive_from <= segment_from <
    depth`` unless the parent itself holds a state.

    Attributes:
        id: the tree's id of the node.
        order: sequence number of its appearance; ties are broken by it, lowest first.
        depth: tokens from the root to the node's end.
        segment_from: depth at which its own tokens begin, which is its parent's end.
        exclusive_from: end of the nearest ancestor that has a state or several children: the KV
            below is of use to this prefix alone.
        reuse_from: end of the nearest ancestor that has a state (0: none): where a request would
            resume if this prefix's state were lost.
        children: number of nodes below it in the tree.
        has_state: it holds a recurrent state on the device, so the state pool may evict it.
        is_leaf: the KV pool may evict it: unlocked, and no child has KV on the device.
        state_locked: a request holds its state.
        last_access: logical tick at which its state was created or last consumed.
        reuse_id: id of the ancestor that ``reuse_from`` is the end of; ``None`` at the root.
    """

    id: int
    order: int
    depth: int
    segment_from: int
    exclusive_from: int
    reuse_from: int
    children: int
    has_state: bool
    is_leaf: bool
    state_locked: bool
    last_access: int
    reuse_id: int | None = None

    def may_leave(self, pool: Pool | None) -> bool:
        """Whether evicting it from ``pool`` (``None``: from either) is allowed now."""
        if pool is None:
            return self.is_leaf or self.may_leave(Pool.STATE)
        if pool is Pool.KV:
            return self.is_leaf
        return self.has_state and not self.state_locked
