"""Lets a policy choose what the host forgets: all else is locked, by SGLang's own host locks.

Neither tree core of SGLang 0.5.23 can be told a victim on the host. Both pass over what is locked
there, and take it out of their order. So whatever the host could forget is locked once it lies
there alone, and what the policy chooses is unlocked when room is short: the core then has no other
choice. A lock costs the core O(1), and a decision what it costs on the device.

A node's KV cannot be locked without its state, nor the other way round. So where the device has the
KV too, whose copy is the first that the host can do without, a state on the host is left to
SGLang's order. It goes before those that the policy orders: mostly it is one that a deeper state,
loaded back for the same request, supersedes.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.marconi.prefix import HostPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

if TYPE_CHECKING:
    from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache

#: What is ordered there.
HOST_ORDERED = {ComponentType.FULL: HostPool.KV, ComponentType.MAMBA: HostPool.STATE}
#: Nodes that are locked when a request lets go of its path: more than move to the host meanwhile.
AT_ONCE = 32


class HostOrder:
    """The host's memory of one cache, in the order of a policy that orders it.

    Should that fail, all is unlocked, and SGLang evicts in its own order until the policy's view of
    the tree is whole again.
    """

    def __init__(self, cache: MambaRadixCache) -> None:
        self._cache = cache
        self._policy = cache.policy
        #: What ends the lock on a node that the policy keeps, by the node's id.
        self._locks: dict[int, Any] = {}
        self._unlocked: dict[int, None] = {}

    def clear(self) -> None:
        """The tree was emptied."""
        self._locks.clear()
        self._unlocked.clear()

    def deleted(self, id: int) -> None:
        """The node of that id is about to leave the tree."""
        self._locks.pop(id, None)
        self._unlocked.pop(id, None)

    def evict(self, count: int, component_type: ComponentType) -> int:
        """Evict ``count`` tokens of KV, or states, from the host.

        Returns:
            How many went: more where a victim is longer, fewer where no more can go.
        """
        cache, offered = self._cache, set[int]()
        try:
            self._lock_what_stays()
        except Exception as error:
            return self._evict_least_recent(count, component_type, error)
        # With copies of what the device has too, which save nothing, the core begins by itself.
        freed = cache.evict_from_host(count, component_type)
        while freed < count:
            try:
                chosen = self._unlock_lowest(component_type, offered)
            except Exception as error:
                return freed + self._evict_least_recent(count - freed, component_type, error)
            if chosen is None:
                break
            # What another holds, a copy under way, stays, and is offered once. What led to a victim
            # alone is of less worth now, so the next is chosen when it is gone.
            offered.add(chosen)
            freed += cache.evict_from_host(count - freed, component_type)
        return freed

    def keep_up(self) -> None:
        """Lock some of what moved, while no memory is short, so that an eviction finds few.

        Raises:
            Exception: of the tree core; what it was about is left to an eviction.
        """
        moved = self._cache.view.moved
        for id in list(islice(moved, AT_ONCE)):
            self._follow(id)
            del moved[id]

    def let_go(self, node: Any) -> None:
        """The device is about to give up the KV of ``node``, maybe with all below it."""
        below = [node]
        while below and self._locks:
            one = below.pop()
            self._unlock(one.id)
            below.extend(one.children.values())

    # -- internals

    def _unlock_lowest(self, component_type: ComponentType, offered: set[int]) -> int | None:
        """Unlock the policy's victim; ``None`` if it has none but those that were offered."""
        self._lock_what_stays()
        node = self._cache.choose_victim(HOST_ORDERED[component_type], offered)
        if node is None:
            return None
        self._unlock(node.id)
        return int(node.id)

    def _lock_what_stays(self) -> None:
        """Lock what came to lie on the host alone, and unlock what no longer does."""
        cache = self._cache
        cache.view.require_sound()
        cache.view.refresh()
        if self._policy is not cache.policy:
            # The tree was learnt anew, and what moved meanwhile is unknown.
            self._policy = cache.policy
            for id in list(self._locks):
                self._unlock(id)
        moved, cache.view.moved = cache.view.moved, {}
        unlocked, self._unlocked = self._unlocked, {}
        for id in (*unlocked, *moved):
            self._follow(id)

    def _follow(self, id: int) -> None:
        """Lock a node that the host may forget, and no other."""
        if self._cache.view.may_be_forgotten(id):
            self._lock(id)
        else:
            self._unlock(id)

    def _lock(self, id: int) -> None:
        if id not in self._locks:
            self._locks[id] = self._cache.inc_host_lock_ref(id).to_dec_params()

    def _unlock(self, id: int) -> None:
        params = self._locks.pop(id, None)
        if params is not None:
            self._unlocked[id] = None
            self._cache.dec_host_lock_ref(id, params)

    def _evict_least_recent(
        self, count: int, component_type: ComponentType, error: Exception
    ) -> int:
        """Leave an eviction to SGLang's order; O(what was locked), once for each such error."""
        cache = self._cache
        cache.count_fallback(HOST_ORDERED[component_type], error)
        for id in list(self._locks):
            try:
                self._unlock(id)
            except Exception as unlocking:
                cache.count_error(
                    "unlocking what the host holds", unlocking, "the host keeps it until a flush"
                )
        return cache.evict_from_host(count, component_type)
