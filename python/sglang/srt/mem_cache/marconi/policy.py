"""The eviction policies, by number, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Protocol, runtime_checkable

from sglang.srt.mem_cache.marconi.candidates import Candidates
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from sglang.srt.mem_cache.marconi.savings import Savings, flop_efficiency
from sglang.srt.mem_cache.marconi.value.policy import ValuePolicy

#: Hits that policy 2 may have yet to enter, so that a decision after a long time takes none.
MOST_HITS = 32
#: Changed prefixes that an adapter reports when a request lets go of its path.
REPORTED_AT_ONCE = 8


class EvictionPolicy(Protocol):
    """Orders what is cached; a base adapter reports the tree's events and asks for victims.

    ``now`` is a logical tick, the same on every tensor-parallel rank. The adapter keeps one
    :class:`CachedPrefix` a node and changes it in place, so a policy must not read a prefix's
    fields between two events as if they were frozen. A pool that is not in ``pools`` is left to
    the tree's own LRU order.
    """

    pools: frozenset[Pool]

    def on_insert(self, prefix: CachedPrefix, now: int) -> None:
        """A prefix (state, KV or both) became cached."""

    def on_hit(self, prefix: CachedPrefix, now: int) -> None:
        """A request consumed its state; ``prefix.last_access`` is ``now``."""

    def on_change(self, prefix: CachedPrefix) -> None:
        """Its cost, bytes, children, locks or surviving ancestor changed."""

    def on_remove(self, prefix: CachedPrefix) -> None:
        """It is no longer cached."""

    def victim(self, pool: Pool, now: int, excluding: Collection[int] = ()) -> CachedPrefix | None:
        """Whom to evict from ``pool``, or ``None`` when nothing evictable is left.

        Args:
            excluding: ids already tried in this eviction, to be passed over.
        """


@runtime_checkable
class ReturnObserver(Protocol):
    """A policy that learns from requests that come back for what was evicted."""

    def on_return(self, id: int, now: int) -> None:
        """A request would have resumed at the evicted state of prefix ``id``, and none deeper."""


def orders_shared_memory(policy: EvictionPolicy) -> bool:
    """Whether a policy orders states and leaves of KV as one, whichever pool it is asked about."""
    return bool(getattr(policy, "shared", False))


class LruPolicy:
    """Policy 1: stock LRU. It orders no pool, so SGLang's own walk decides, victim for victim."""

    pools: frozenset[Pool] = frozenset()

    def on_insert(self, prefix: CachedPrefix, now: int) -> None: ...

    def on_hit(self, prefix: CachedPrefix, now: int) -> None: ...

    def on_change(self, prefix: CachedPrefix) -> None: ...

    def on_remove(self, prefix: CachedPrefix) -> None: ...

    def victim(self, pool: Pool, now: int, excluding: Collection[int] = ()) -> CachedPrefix | None:
        return None


class MarconiPolicy:
    """Policy 2, the paper's (section 4.2): evict the lowest recency + alpha * FLOP efficiency.

    Args:
        pools: whose victims it chooses.
        shared: both pools are one memory, as in the paper: whichever is short, the lowest score
            among states and leaves of KV goes.
    """

    def __init__(
        self,
        savings: Savings,
        eff_weight: float,
        pools: frozenset[Pool] = frozenset(Pool),
        *,
        shared: bool = False,
    ) -> None:
        self.pools = pools
        self.shared = shared
        self.eff_weight = eff_weight
        self._candidates = Candidates(
            [None] if shared else [pool for pool in Pool if pool in pools],
            partial(flop_efficiency, savings),
        )
        self._hit: dict[int, CachedPrefix] = {}

    def on_insert(self, prefix: CachedPrefix, now: int) -> None:
        self.on_change(prefix)

    def on_hit(self, prefix: CachedPrefix, now: int) -> None:
        # A hit mostly comes before a change (the lock), and one entry does for both.
        self._hit[prefix.id] = prefix
        if len(self._hit) > MOST_HITS:
            self.on_change(self._hit[next(iter(self._hit))])

    def on_change(self, prefix: CachedPrefix) -> None:
        self._hit.pop(prefix.id, None)
        self._candidates.put(prefix)

    def on_remove(self, prefix: CachedPrefix) -> None:
        self._hit.pop(prefix.id, None)
        self._candidates.discard(prefix)

    def victim(self, pool: Pool, now: int, excluding: Collection[int] = ()) -> CachedPrefix | None:
        if pool not in self.pools:
            return None
        self._settle()
        return self._candidates.lowest(
            None if self.shared else pool, now, self.eff_weight, excluding
        )

    def candidates_and_steps(self, pool: Pool) -> tuple[int, int]:
        """How many prefixes a decision chooses from, and how many of them it looks at."""
        self._settle()
        return self._candidates.count(None if self.shared else pool)

    def _settle(self) -> None:
        while self._hit:
            self.on_change(next(iter(self._hit.values())))

    def _check(self) -> None:
        self._settle()
        self._candidates._check()


PolicyFactory = Callable[[MarconiConfig, Savings, bool], EvictionPolicy]

_POOLS = {"both": frozenset(Pool), "state": frozenset({Pool.STATE})}


def _marconi(config: MarconiConfig, savings: Savings, shared: bool) -> EvictionPolicy:
    assert isinstance(config.marconi_eff_weight, float)
    pools = _POOLS[config.marconi_evict_pools]
    return MarconiPolicy(savings, config.marconi_eff_weight, pools, shared=shared)


def _value(config: MarconiConfig, savings: Savings, shared: bool) -> EvictionPolicy:
    return ValuePolicy(savings.cost, _POOLS[config.marconi_evict_pools], shared=shared)


def _lru(config: MarconiConfig, savings: Savings, shared: bool) -> EvictionPolicy:
    return LruPolicy()


POLICIES: dict[int | str, PolicyFactory] = {1: _lru, 2: _marconi, 3: _value}

#: Policies that ``--marconi-evict-policy auto`` chooses between: by name, what each fixes of the
#: configuration. Stock LRU is the first: it is in force until a window shows another to be better.
TUNABLE: dict[str, dict[str, Any]] = {
    "lru": {"marconi_evict_policy": 1, "marconi_evict_pools": "both"},
    "marconi-state": {"marconi_evict_policy": 2, "marconi_evict_pools": "state"},
    "marconi": {"marconi_evict_policy": 2, "marconi_evict_pools": "both"},
    "value": {"marconi_evict_policy": 3, "marconi_evict_pools": "both"},
}


def create_policy(
    config: MarconiConfig, savings: Savings, *, shared_memory: bool = False
) -> EvictionPolicy:
    """The policy that a configuration names which leaves nothing to the tuner.

    Args:
        shared_memory: states and KV take their bytes from one memory. A policy of both pools then
            orders them as one; one of the state pool leaves to the base which pool gives.
    """
    shared = shared_memory and config.marconi_evict_pools == "both"
    return POLICIES[config.marconi_evict_policy](config, savings, shared)


def reweight(policy: EvictionPolicy, config: MarconiConfig) -> None:
    """Give a policy in force the weight of a configuration that is otherwise its own."""
    if isinstance(policy, MarconiPolicy):
        assert isinstance(config.marconi_eff_weight, float)
        policy.eff_weight = config.marconi_eff_weight
