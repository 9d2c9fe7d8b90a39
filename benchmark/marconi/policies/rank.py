"""The paper's sum with ranks in place of min-max scaling: outliers no longer set the scale."""

from __future__ import annotations

from sglang.srt.mem_cache.marconi.eviction.savings import Savings, SurvivingSavings, flop_efficiency
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

from policies.registry import (
    CacheArguments,
    PolicyArguments,
    PolicyContext,
    Recipe,
    policy_family,
)
from policies.scored import Floats, ScoredPolicy, ranks


class RankPolicy(ScoredPolicy):
    """Lowest rank of last access + alpha * rank of FLOP efficiency goes first."""

    width = 2

    def __init__(self, savings: Savings, eff_weight: float, pools: frozenset[Pool]) -> None:
        super().__init__(pools)
        self._savings, self._eff_weight = savings, eff_weight

    def values(self, prefix: CachedPrefix, pool: Pool) -> tuple[float, ...]:
        return prefix.last_access, flop_efficiency(self._savings, prefix)

    def scores(self, values: Floats, now: int) -> Floats:
        last_access, efficiency = values
        return ranks(last_access) + self._eff_weight * ranks(efficiency)


@policy_family("marconi-rank:ALPHA", "the paper's score with ranks, in both pools")
def rank(arguments: PolicyArguments) -> Recipe:
    return _recipe(arguments.number("ALPHA"), frozenset(Pool))


@policy_family("marconi-rank-state:ALPHA", "the same in the state pool, LRU for KV leaves")
def rank_state(arguments: PolicyArguments) -> Recipe:
    return _recipe(arguments.number("ALPHA"), frozenset({Pool.STATE}))


def _recipe(eff_weight: float, pools: frozenset[Pool]) -> Recipe:
    def recipe(context: PolicyContext) -> CacheArguments:
        return CacheArguments(RankPolicy(SurvivingSavings(context.cost), eff_weight, pools))

    return recipe
