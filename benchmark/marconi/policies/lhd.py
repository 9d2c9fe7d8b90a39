"""LHD: evicts the least hit density, the hits to expect per byte and per unit of time.

Beckmann, Chen and Cidon, "LHD: Improving Cache Hit Rate by Maximizing Hit Density", NSDI 2018.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

from policies.listed import ListPolicy, Objects, list_recipe
from policies.registry import PolicyArguments, Recipe, policy_family
from policies.scored import CandidateTable

#: Ages are told apart by quarters of an octave, up to 2^20 ticks.
EDGES = np.unique(np.floor(2.0 ** (np.arange(1, 81) / 4)))
#: Lower bound of each bin of ages, and how many ages it holds.
STARTS = np.concatenate(([0.0], EDGES))
WIDTHS = np.diff(np.concatenate((STARTS, [2 * EDGES[-1]])))
#: Class 0 was never used; the others differ by the octave of the age at which they last were.
CLASSES = 16
#: Densities are worked out anew after so many hits and evictions, and the past fades by so much.
INTERVAL, DECAY = 256, 0.9


class LhdPolicy(ListPolicy):
    """See ``policies.listed`` for what stands for an object; there are no ghosts.

    Ages count ticks since the last use or the beginning. The density of a class at an age is the
    hits it had at that age or later over the time that those which grew so old lived on, both
    counted from hits and evictions of the past; 0 at ages that none reached. Before anything was
    seen of a class it is 1 / (age + 1). The paper samples candidates; here all are compared. Its
    few "explorers", which are kept to see how old a class can grow, are left out.

    Bytes are all that come free in shared memory, and those of the pool that is short otherwise.
    """

    def __init__(
        self, cost: CostModel, objects: Objects = Objects.NODES, *, shared: bool = False
    ) -> None:
        super().__init__(objects, shared=shared)
        self._cost = cost
        self._tables = {want: CandidateTable(3) for want in self._wants}
        self._kind: dict[int, int] = {}
        self._stamp: dict[int, int] = {}
        self._hits = np.zeros((CLASSES, len(STARTS)))
        self._evictions = np.zeros((CLASSES, len(STARTS)))
        self._events = 0
        self._now = 0
        #: Hits per tick, by class and bin of ages.
        self.density = np.tile(1 / (STARTS + 1), (CLASSES, 1))

    def enter(self, prefix: CachedPrefix, *, returned: bool) -> None:
        self._kind[prefix.id], self._stamp[prefix.id] = 0, prefix.last_access
        self._put(prefix)

    def use(self, prefix: CachedPrefix) -> None:
        self._now = max(self._now, prefix.last_access)
        age = self._count(self._hits, prefix.id)
        self._kind[prefix.id] = min(1 + age.bit_length(), CLASSES - 1)
        self._stamp[prefix.id] = prefix.last_access
        self._put(prefix)

    def leave(self, id: int) -> None:
        self._count(self._evictions, id)
        del self._kind[id], self._stamp[id]

    def take_over(self, old: int, prefix: CachedPrefix) -> None:
        self._kind[prefix.id], self._stamp[prefix.id] = self._kind[old], self._stamp[old]
        self._put(prefix)

    def on_change(self, prefix: CachedPrefix) -> None:
        super().on_change(prefix)
        self._put(prefix)

    def on_remove(self, prefix: CachedPrefix) -> None:
        super().on_remove(prefix)
        self._put(prefix)

    def victim(self, pool: Pool, now: int, excluding: Container[int] = ()) -> CachedPrefix | None:
        self._now = max(self._now, now)
        return super().victim(pool, now, excluding)

    def choose(self, want: Pool | None, excluding: Container[int]) -> int | None:
        table = self._tables[want]
        rows = table.eligible(excluding)
        if not len(rows):
            return None
        kind, stamp, size = table.columns(rows)
        bins = np.searchsorted(EDGES, np.maximum(self._now - stamp, 0), side="right")
        return table.lowest(rows, self.density[kind.astype(np.intp), bins] / size).id

    def _put(self, prefix: CachedPrefix) -> None:
        for want, table in self._tables.items():
            if prefix.id in self.members and prefix.may_leave(want):
                values = (self._kind[prefix.id], self._stamp[prefix.id], self._size(prefix, want))
                table.put(prefix, values)
            else:
                table.discard(prefix)

    def _size(self, prefix: CachedPrefix, want: Pool | None) -> float:
        kv = self._cost.kv_bytes_per_token * (prefix.depth - prefix.exclusive_from)
        if want is None:
            return self._cost.state_bytes + prefix.is_leaf * kv
        return self._cost.state_bytes if want is Pool.STATE else max(kv, 1.0)

    def _count(self, events: np.ndarray[tuple[int, int], np.dtype[np.float64]], id: int) -> int:
        age = max(self._now - self._stamp[id], 0)
        events[self._kind[id], np.searchsorted(EDGES, age, side="right")] += 1
        self._events += 1
        if self._events % INTERVAL == 0:
            self._learn()
        return age

    def _learn(self) -> None:
        hits = _from_here_on(self._hits)
        lived = _from_here_on((_from_here_on(self._hits + self._evictions)) * WIDTHS)
        density = np.divide(hits, lived, out=np.zeros_like(hits), where=lived > 0)
        known = lived[:, 0] > 0
        self.density[known] = density[known]
        self._hits *= DECAY
        self._evictions *= DECAY


def _from_here_on(
    by_age: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.cumsum(by_age[:, ::-1], axis=1)[:, ::-1]


@policy_family("lhd[:OBJECT]", "LHD; an OBJECT is a node (default), a line or a tail")
def lhd(arguments: PolicyArguments) -> Recipe:
    return list_recipe(
        arguments, lambda context, objects: LhdPolicy(context.cost, objects, shared=context.elastic)
    )
