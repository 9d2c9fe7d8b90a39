"""The prefixes that may be evicted, by the pools that they may leave, and the lowest score."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from sglang.srt.mem_cache.marconi.eviction.staircase import Staircase
from sglang.srt.mem_cache.marconi.eviction.stamp_tree import Key
from sglang.srt.mem_cache.marconi.eviction.utility import Utility, recency
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool


class Candidates:
    """Candidates of one or more pools; the pool ``None`` is memory that both pools share.

    Candidates that the same pools may evict lie together in one :class:`Staircase`, forks in
    another. So a decision for one of two pools looks at two staircases: what this pool alone may
    evict, and what either may.

    ``put`` and ``discard`` are O(log n), ``lowest`` is O(k) for staircases of k steps. What a
    prefix saves per byte is computed once at ``put``, not at each decision.
    """

    def __init__(
        self, pools: Sequence[Pool | None], efficiency: Callable[[CachedPrefix], float]
    ) -> None:
        self._pools = tuple(pools)
        self._efficiency = efficiency
        self._members: dict[int, tuple[CachedPrefix, Key, float, Staircase]] = {}
        # By the pools that their members may leave, a bit each.
        self._narrow = [Staircase() for _ in range(1 << len(self._pools))]
        self._forks = [Staircase() for _ in range(1 << len(self._pools))]
        self._groups = {
            pool: [
                [stairs for pools, stairs in enumerate(group) if pools >> at & 1]
                for group in (self._narrow, self._forks)
            ]
            for at, pool in enumerate(self._pools)
        }
        self._masked: set[int] = set()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[CachedPrefix]:
        return (prefix for prefix, *_ in self._members.values())

    def put(self, prefix: CachedPrefix) -> None:
        """Add ``prefix``, take note of its change, or drop it if no pool may evict it.

        Raises:
            ValueError: its FLOPs saved per byte are no finite number.
        """
        may_leave = self._may_leave(prefix)
        if not may_leave:
            self.discard(prefix)
            return
        id = prefix.id
        key = (prefix.last_access, prefix.order)
        efficiency = self._efficiency(prefix)
        if not math.isfinite(efficiency):
            raise ValueError(f"prefix {id} saves {efficiency} FLOPs per byte; allowed are finite")
        stairs = (self._narrow if prefix.children <= 1 else self._forks)[may_leave]
        known = self._members.get(id)
        if known is None:
            self._members[id] = (prefix, key, efficiency, stairs)
            stairs.add(key, efficiency, id)
            return
        _, key_before, efficiency_before, stairs_before = known
        if key == key_before and efficiency == efficiency_before and stairs is stairs_before:
            return
        self._members[id] = (prefix, key, efficiency, stairs)
        if id not in self._masked:
            stairs_before.remove(key_before)
            stairs.add(key, efficiency, id)

    def discard(self, prefix: CachedPrefix) -> None:
        known = self._members.pop(prefix.id, None)
        if known is None:
            return
        if prefix.id in self._masked:
            self._masked.remove(prefix.id)
        else:
            known[3].remove(known[1])

    def lowest(
        self, pool: Pool | None, now: int, eff_weight: float, excluding: Container[int] = ()
    ) -> CachedPrefix | None:
        """The candidate of lowest utility in ``pool`` at tick ``now``, ``None`` if there is none.

        Prefixes with several children are considered only when no other is left: their state
        serves all that is below. Equal scores go to the one that appeared first.

        Args:
            excluding: ids to pass over, asked of what the answer rests on: the extremes of last
                access and efficiency, and the lowest. What is passed over stays out of the trees
                until a call no longer excludes it, so a walk that excludes ever more pays O(k) for
                each once.
        """
        if self._masked:
            self._unmask([id for id in self._masked if id not in excluding])
        for group in self._groups[pool]:
            while found := [stairs for stairs in group if stairs.is_filled]:
                if not excluding:
                    return self._members[_lowest(found, now, eff_weight)][0]
                outermost = {id for stairs in found for id in stairs.outermost()}
                passed = [id for id in outermost if id in excluding]
                if not passed:
                    lowest = _lowest(found, now, eff_weight)
                    if lowest not in excluding:
                        return self._members[lowest][0]
                    passed = [lowest]
                self._mask(passed)
        return None

    def count(self, pool: Pool | None) -> tuple[int, int]:
        """How many candidates of ``pool`` a decision chooses from, and how many it looks at."""
        for group in self._groups[pool]:
            found = [stairs for stairs in group if stairs.is_filled]
            if found:
                return sum(map(len, found)), sum(stairs.steps for stairs in found)
        return 0, 0

    def _may_leave(self, prefix: CachedPrefix) -> int:
        """The pools that may evict ``prefix``, a bit each."""
        pools = 0
        for at, pool in enumerate(self._pools):
            if prefix.may_leave(pool):
                pools |= 1 << at
        return pools

    def _mask(self, ids: Iterable[int]) -> None:
        for id in ids:
            _, key, _, stairs = self._members[id]
            stairs.remove(key)
            self._masked.add(id)

    def _unmask(self, ids: Iterable[int]) -> None:
        for id in ids:
            _, key, efficiency, stairs = self._members[id]
            stairs.add(key, efficiency, id)
            self._masked.remove(id)

    def _check(self) -> None:
        for stairs in (*self._narrow, *self._forks):
            stairs._check()
            expected = {
                (key, efficiency, id)
                for id, (_, key, efficiency, its_stairs) in self._members.items()
                if its_stairs is stairs and id not in self._masked
            }
            assert set(stairs) == expected, "a tree does not hold what is known of its members"
        assert not self._narrow[0] and not self._forks[0], "a candidate of no pool"
        assert self._masked <= set(self._members), "a masked prefix is no member"
        for key, (prefix, stamp, efficiency, stairs) in self._members.items():
            assert key == prefix.id
            assert stamp == (prefix.last_access, prefix.order), f"prefix {key} has a stale key"
            assert efficiency == self._efficiency(prefix), f"prefix {key} has a stale efficiency"
            group = self._narrow if prefix.children <= 1 else self._forks
            assert stairs is group[self._may_leave(prefix)], f"prefix {key} lies among others"


def _lowest(found: Sequence[Staircase], now: int, eff_weight: float) -> int:
    """Id of the candidate of lowest score, and then of lowest order, in non-empty staircases."""
    first, last, low, high = found[0].bounds()
    for stairs in found[1:]:
        its_first, its_last, its_low, its_high = stairs.bounds()
        first, last = min(first, its_first), max(last, its_last)
        low, high = min(low, its_low), max(high, its_high)
    utility = Utility(now, eff_weight, recency(now, first), recency(now, last), low, high)
    best = found[0].lowest(utility)
    for stairs in found[1:]:
        best = min(best, stairs.lowest(utility))
    return best[2]
