"""GreedyDual-Size-Frequency: worth is uses * cost / size, ageing by a clock that victims push on.

Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy",
HP Laboratories HPL-98-69R1, 1998.
"""

from __future__ import annotations

from collections.abc import Container

from sglang.srt.mem_cache.marconi.eviction.savings import Savings, SurvivingSavings, flop_efficiency
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

from policies.keyed import Key, KeyedPolicy
from policies.registry import (
    CacheArguments,
    PolicyArguments,
    Recipe,
    policy_family,
)


class GdsfPolicy(KeyedPolicy):
    """Cost is the FLOPs lost, size the bytes that come free; each pool has its own clock.

    The clock of a pool stands at the worth of its last victim. A prefix's worth is the clock at
    its last use plus uses * FLOPs / bytes, where a use is its creation or a hit on its state.
    """

    def __init__(self, savings: Savings, pools: frozenset[Pool]) -> None:
        super().__init__(pools)
        self._savings = savings
        self._clock = dict.fromkeys(pools, 0.0)
        self._uses: dict[int, int] = {}
        self._clock_at_use: dict[int, dict[Pool, float]] = {}

    def key(self, prefix: CachedPrefix, pool: Pool) -> Key:
        efficiency = flop_efficiency(self._savings, prefix)
        return (self._clock_at_use[prefix.id][pool] + self._uses[prefix.id] * efficiency,)

    def on_insert(self, prefix: CachedPrefix, now: int) -> None:
        self._use(prefix)

    def on_hit(self, prefix: CachedPrefix, now: int) -> None:
        self._use(prefix)

    def on_remove(self, prefix: CachedPrefix) -> None:
        super().on_remove(prefix)
        self._uses.pop(prefix.id, None)
        self._clock_at_use.pop(prefix.id, None)

    def victim(self, pool: Pool, now: int, excluding: Container[int] = ()) -> CachedPrefix | None:
        victim = super().victim(pool, now, excluding)
        if victim is not None:
            self._clock[pool] = max(self._clock[pool], self.key(victim, pool)[0])
        return victim

    def _use(self, prefix: CachedPrefix) -> None:
        self._uses[prefix.id] = self._uses.get(prefix.id, 0) + 1
        self._clock_at_use[prefix.id] = dict(self._clock)
        self.on_change(prefix)


@policy_family("gdsf", "GreedyDual-Size-Frequency over FLOPs and bytes, in both pools")
def gdsf(arguments: PolicyArguments) -> Recipe:
    return _recipe(frozenset(Pool))


@policy_family("gdsf-state", "the same in the state pool, LRU for KV leaves")
def gdsf_state(arguments: PolicyArguments) -> Recipe:
    return _recipe(frozenset({Pool.STATE}))


def _recipe(pools: frozenset[Pool]) -> Recipe:
    return lambda context: CacheArguments(GdsfPolicy(SurvivingSavings(context.cost), pools))
