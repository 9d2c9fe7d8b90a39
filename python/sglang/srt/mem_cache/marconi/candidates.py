"""The prefixes of one pool that may be evicted, and the lowest score among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from sglang.srt.mem_cache.marconi.staircase import Staircase
from sglang.srt.mem_cache.marconi.stamp_tree import Key


class Candidates:
    """Candidates of one pool, in one :class:`Staircase` for forks and one for all others.

    The pool ``None`` is memory that both pools share.

    ``put`` and ``discard`` are O(log n), ``lowest`` is O(k) for a staircase of k steps. What a
    prefix saves per byte is computed once at ``put``, not at each decision.
    """

    def __init__(self, pool: Pool | None, efficiency: Callable[[CachedPrefix], float]) -> None:
        self._pool = pool
        self._efficiency = efficiency
        self._members: dict[int, tuple[CachedPrefix, Key, float, Staircase]] = {}
        self._narrow = Staircase()
        self._forks = Staircase()
        self._masked: set[int] = set()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[CachedPrefix]:
        return (prefix for prefix, *_ in self._members.values())

    def put(self, prefix: CachedPrefix) -> None:
        """Add ``prefix``, take note of its change, or drop it if the pool may not evict it.

        Raises:
            ValueError: its FLOPs saved per byte are no finite number.
        """
        if not prefix.may_leave(self._pool):
            self.discard(prefix)
            return
        id = prefix.id
        key = (prefix.last_access, prefix.order)
        efficiency = self._efficiency(prefix)
        if not math.isfinite(efficiency):
            raise ValueError(f"prefix {id} saves {efficiency} FLOPs per byte; allowed are finite")
        tree = self._narrow if prefix.children <= 1 else self._forks
        known = self._members.get(id)
        self._members[id] = (prefix, key, efficiency, tree)
        if id in self._masked:
            return
        if known is not None:
            _, key_before, efficiency_before, tree_before = known
            if key == key_before and efficiency == efficiency_before and tree is tree_before:
                return
            tree_before.remove(key_before)
        tree.add(key, efficiency, id)

    def discard(self, prefix: CachedPrefix) -> None:
        known = self._members.pop(prefix.id, None)
        if known is None:
            return
        if prefix.id in self._masked:
            self._masked.remove(prefix.id)
        else:
            known[3].remove(known[1])

    def lowest(
        self, now: int, eff_weight: float, excluding: Collection[int] = ()
    ) -> CachedPrefix | None:
        """The candidate of lowest utility at tick ``now``, ``None`` if there is none.

        Prefixes with several children are considered only when no other is left: their state
        serves all that is below. Equal scores go to the one that appeared first.

        Args:
            excluding: ids to pass over. They stay out of the trees until a call no longer
                excludes them, so a walk that excludes ever more pays for each of them once.
        """
        if excluding or self._masked:
            self._mask({id for id in excluding if id in self._members})
        id = (self._narrow if self._narrow else self._forks).lowest(now, eff_weight)
        return None if id is None else self._members[id][0]

    def _mask(self, wanted: set[int]) -> None:
        for id in wanted - self._masked:
            _, key, _, tree = self._members[id]
            tree.remove(key)
        for id in self._masked - wanted:
            _, key, efficiency, tree = self._members[id]
            tree.add(key, efficiency, id)
        self._masked = wanted

    def _check(self) -> None:
        for tree in (self._narrow, self._forks):
            tree._check()
            expected = {
                (key, efficiency, id)
                for id, (_, key, efficiency, its_tree) in self._members.items()
                if its_tree is tree and id not in self._masked
            }
            assert set(tree) == expected, "a tree does not hold what is known of its members"
        assert self._masked <= set(self._members), "a masked prefix is no member"
        for key, (prefix, stamp, efficiency, tree) in self._members.items():
            assert key == prefix.id
            assert prefix.may_leave(self._pool), f"prefix {key} may not leave {self._pool}"
            assert stamp == (prefix.last_access, prefix.order), f"prefix {key} has a stale key"
            assert efficiency == self._efficiency(prefix), f"prefix {key} has a stale efficiency"
            assert tree is (self._narrow if prefix.children <= 1 else self._forks)
