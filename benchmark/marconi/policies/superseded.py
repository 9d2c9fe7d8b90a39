"""A state with one child is likely superseded by the deeper one: evict such states first."""

from __future__ import annotations

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

from policies.keyed import Key, KeyedPolicy
from policies.registry import CacheArguments, PolicyArguments, Recipe, policy_family
from policies.shared import SharedOrderPolicy


class SupersededFirstPolicy(KeyedPolicy):
    """States with exactly one child first, then all others; LRU inside each class."""

    def __init__(self) -> None:
        super().__init__(frozenset({Pool.STATE}))

    def key(self, prefix: CachedPrefix, pool: Pool) -> Key:
        return prefix.children != 1, prefix.last_access


@policy_family("superseded", "states with one child first, LRU inside each class and for KV leaves")
def superseded(arguments: PolicyArguments) -> Recipe:
    return lambda context: CacheArguments(
        SharedOrderPolicy(superseded_first=True) if context.elastic else SupersededFirstPolicy()
    )
