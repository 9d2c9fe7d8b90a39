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


class HostPool(Enum):
    """The same two on the host, where there is a tier below the device."""

    KV = "host_kv"
    STATE = "host_state"

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
        host_state: its state lies on the host alone, and a policy orders what lies there.
        host_kv: likewise its KV.
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
    host_state: bool = False
    host_kv: bool = False

    @property
    def state_survives(self) -> bool:
        """A request can resume at it."""
        return self.has_state or self.host_state

    @property
    def may_be_forgotten(self) -> bool:
        """Whether the host may evict any of it in the policy's order."""
        return self.host_kv and (self.host_state or not self.children)

    def may_leave(self, pool: Pool | HostPool | None) -> bool:
        """Whether it may be evicted from ``pool`` now; ``None``: from either :class:`Pool`."""
        if pool is None:
            return self.is_leaf or self.may_leave(Pool.STATE)
        if pool is Pool.KV:
            return self.is_leaf
        if pool is Pool.STATE:
            return self.has_state and not self.state_locked
        return self.host_kv and (not self.children if pool is HostPool.KV else self.host_state)
