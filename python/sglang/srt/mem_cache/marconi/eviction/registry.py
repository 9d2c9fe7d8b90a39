"""The eviction policies that an operator can name; each is entered once, by ``register_policy``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sglang.srt.mem_cache.marconi.eviction.lru import LruPolicy
from sglang.srt.mem_cache.marconi.eviction.marconi import MarconiPolicy
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy, HostOrderer
from sglang.srt.mem_cache.marconi.eviction.savings import Savings
from sglang.srt.mem_cache.marconi.eviction.value import ValuePolicy
from sglang.srt.mem_cache.marconi.prefix import Pool


class PolicyOptions(Protocol):
    """What a policy may read of the checked configuration (``MarconiConfig``)."""

    @property
    def marconi_evict_policy(self) -> int: ...

    @property
    def marconi_eff_weight(self) -> float | str: ...

    @property
    def marconi_evict_pools(self) -> str: ...


#: Makes a policy from the operator's options, the price of a prefix, and whether states and KV
#: share one memory that the policy is to order as one.
PolicyFactory = Callable[[PolicyOptions, Savings, bool], EvictionPolicy]


@dataclass(frozen=True)
class PolicyEntry:
    """One eviction policy as an operator sees it.

    Attributes:
        number: what ``--marconi-evict-policy`` calls it.
        name: one word for logs and read-outs.
        about: half a sentence for ``--help``, after "N is".
        make: makes one.
        options: fields of ``MarconiConfig`` that it uses; another one beside it is refused.
        orders_kv: it may choose KV leaves; ``False`` leaves them to SGLang's own order always.
        needs_flops: a model whose FLOPs are unknown is refused.
    """

    number: int
    name: str
    about: str
    make: PolicyFactory
    options: frozenset[str] = frozenset()
    orders_kv: bool = True
    needs_flops: bool = True


#: By number. Read it, and add to it by :func:`register_policy`.
POLICIES: dict[int, PolicyEntry] = {}


def register_policy(entry: PolicyEntry) -> None:
    """Make a policy known to flags, checks, caches and the lab.

    A package of your own calls it in every process, from an entry point of SGLang's plugins.

    Raises:
        ValueError: the number is not positive, or the number or the name is taken.
    """
    if entry.number < 1:
        raise ValueError(f"policy number {entry.number} is not allowed; allowed is a number >= 1")
    for known in POLICIES.values():
        if entry.number == known.number or entry.name == known.name:
            raise ValueError(
                f"policy {entry.number} ({entry.name}) is not allowed beside {known.number} "
                f"({known.name}); allowed is a number and a name of its own"
            )
    POLICIES[entry.number] = entry


def create_policy(
    options: PolicyOptions,
    savings: Savings,
    *,
    shared_memory: bool = False,
    orders_host: bool = False,
) -> EvictionPolicy:
    """The policy that a configuration names which leaves nothing to the tuner.

    Args:
        shared_memory: states and KV take their bytes from one memory. A policy of both pools then
            orders them as one; one of the state pool leaves to the base which pool gives.
        orders_host: what lies on the host alone can be evicted in an order of the policy's own. A
            policy of both pools that has one is told of it.

    Raises:
        ValueError: its ``pools`` are not all of :class:`Pool`, so it would never be asked.
    """
    shared = shared_memory and options.marconi_evict_pools == "both"
    entry = POLICIES[options.marconi_evict_policy]
    policy = entry.make(options, savings, shared)
    both = options.marconi_evict_pools == "both"
    if orders_host and both and isinstance(policy, HostOrderer):
        policy.order_host()
    wrong = [pool for pool in policy.pools if not isinstance(pool, Pool)]
    if wrong:
        raise ValueError(
            f"policy {entry.number} ({entry.name}) orders the pool {wrong[0]!r}; allowed are "
            "Pool.KV and Pool.STATE"
        )
    return policy


def reweight(policy: EvictionPolicy, eff_weight: float) -> None:
    """Give a policy in force another weight, if it has one."""
    if isinstance(policy, MarconiPolicy):
        policy.eff_weight = eff_weight


_POOLS = {"both": frozenset(Pool), "state": frozenset({Pool.STATE})}


def _lru(options: PolicyOptions, savings: Savings, shared: bool) -> EvictionPolicy:
    return LruPolicy()


def _marconi(options: PolicyOptions, savings: Savings, shared: bool) -> EvictionPolicy:
    assert isinstance(options.marconi_eff_weight, float)
    pools = _POOLS[options.marconi_evict_pools]
    return MarconiPolicy(savings, options.marconi_eff_weight, pools, shared=shared)


def _value(options: PolicyOptions, savings: Savings, shared: bool) -> EvictionPolicy:
    return ValuePolicy(savings.cost, _POOLS[options.marconi_evict_pools], shared=shared)


register_policy(
    PolicyEntry(1, "lru", "stock LRU", _lru, orders_kv=False, needs_flops=False),
)
register_policy(
    PolicyEntry(
        2,
        "marconi",
        "Marconi (recency + weight * FLOP efficiency)",
        _marconi,
        frozenset({"marconi_eff_weight", "marconi_savings", "marconi_evict_pools"}),
    )
)
register_policy(
    PolicyEntry(
        3,
        "value",
        "value per byte (odds of reuse, learnt, * FLOPs / bytes)",
        _value,
        frozenset({"marconi_evict_pools"}),
    )
)
