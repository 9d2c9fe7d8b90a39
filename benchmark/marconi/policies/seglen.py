"""Recency plus the length of what would be prefilled again, which no cost model is needed for."""

from __future__ import annotations

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

from policies.registry import CacheArguments, PolicyArguments, Recipe, policy_family
from policies.scored import Floats, ScoredPolicy, min_max

LENGTH_WEIGHT = 0.85


class SegmentLengthPolicy(ScoredPolicy):
    """Lowest min-max(last access) + 0.85 * min-max(length) goes first.

    The length is in tokens from the nearest ancestor that holds a state, or from the root.
    """

    width = 2

    def values(self, prefix: CachedPrefix, pool: Pool) -> tuple[float, ...]:
        return prefix.last_access, prefix.depth - prefix.reuse_from

    def scores(self, values: Floats, now: int) -> Floats:
        last_access, length = values
        return min_max(last_access) + LENGTH_WEIGHT * min_max(length)


@policy_family("seglen", "recency + 0.85 * tokens to the state above, in both pools")
def seglen(arguments: PolicyArguments) -> Recipe:
    return lambda context: CacheArguments(SegmentLengthPolicy(frozenset(Pool)))


@policy_family("seglen-state", "the same in the state pool, LRU for KV leaves")
def seglen_state(arguments: PolicyArguments) -> Recipe:
    return lambda context: CacheArguments(SegmentLengthPolicy(frozenset({Pool.STATE})))
