"""Policies whose order is a key that changes only with the prefix's own events."""

from __future__ import annotations

from collections.abc import Container

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from sortedcontainers import SortedList

Key = tuple[float, ...]


class KeyedPolicy:
    """Evicts the candidate of lowest key, ties by order; a subclass gives the keys.

    An event costs O(log n); a decision one step, and one more for each candidate passed over.
    """

    def __init__(self, pools: frozenset[Pool]) -> None:
        self.pools = pools
        self._prefixes: dict[Pool, dict[int, tuple[CachedPrefix, Key]]] = {p: {} for p in pools}
        self._sorted = {pool: SortedList() for pool in pools}

    def key(self, prefix: CachedPrefix, pool: Pool) -> Key:
        """Its place in the order; the lowest goes first."""
        raise NotImplementedError

    def may_leave(self, prefix: CachedPrefix, pool: Pool) -> bool:
        """Whether evicting it helps where ``pool`` is short, and is allowed."""
        return prefix.may_leave(pool)

    def on_insert(self, prefix: CachedPrefix, now: int) -> None:
        self.on_change(prefix)

    def on_hit(self, prefix: CachedPrefix, now: int) -> None:
        self.on_change(prefix)

    def on_change(self, prefix: CachedPrefix) -> None:
        for pool, known in self._prefixes.items():
            self._discard(prefix, pool)
            if self.may_leave(prefix, pool):
                entry = (*self.key(prefix, pool), prefix.order, prefix.id)
                known[prefix.id] = prefix, entry
                self._sorted[pool].add(entry)

    def on_remove(self, prefix: CachedPrefix) -> None:
        for pool in self._prefixes:
            self._discard(prefix, pool)

    def victim(self, pool: Pool, now: int, excluding: Container[int] = ()) -> CachedPrefix | None:
        for *_, id in self._sorted.get(pool, ()):
            if id not in excluding:
                return self._prefixes[pool][id][0]
        return None

    def _discard(self, prefix: CachedPrefix, pool: Pool) -> None:
        known = self._prefixes[pool].pop(prefix.id, None)
        if known is not None:
            self._sorted[pool].remove(known[1])
