"""What SGLang itself offers: LRU, its other orders of KV leaves, and its cap on states a path."""

from __future__ import annotations

from typing import Any

from policies.registry import (
    CacheArguments,
    PolicyArguments,
    PolicyContext,
    Recipe,
    policy_family,
)


@policy_family("lru", "stock SGLang: LRU in both pools, Rust tree core")
def lru(arguments: PolicyArguments) -> Recipe:
    return lambda context: CacheArguments(core="rust")


@policy_family("lru-python", "stock SGLang: LRU in both pools, Python tree core")
def lru_python(arguments: PolicyArguments) -> Recipe:
    return lambda context: CacheArguments(core="python")


@policy_family("slru[:HITS]", "stock SLRU for KV leaves, protected from HITS hits on (2)")
def slru(arguments: PolicyArguments) -> Recipe:
    return _kv_order("slru", protected_threshold=arguments.integer("HITS", at_least=1, default=2))


@policy_family("lfu", "stock LFU for KV leaves")
def lfu(arguments: PolicyArguments) -> Recipe:
    return _kv_order("lfu")


@policy_family(
    "tlru[:THRESHOLD[:NEXT]]",
    "stock Tail-Optimized LRU for KV leaves; both in tokens and 0 by default, which is LRU",
)
def tlru(arguments: PolicyArguments) -> Recipe:
    threshold = arguments.integer("THRESHOLD", at_least=0, default=0)
    following = arguments.integer("NEXT", at_least=0, default=0)

    def recipe(context: PolicyContext) -> CacheArguments:
        return _kv_order(
            "tlru",
            threshold=threshold // context.block_tokens,
            next_prompt_estimate=following // context.block_tokens,
        )(context)

    return recipe


@policy_family("cap:K", "stock SGLang under --mamba-max-states-per-path K")
def cap(arguments: PolicyArguments) -> Recipe:
    limit = arguments.integer("K", at_least=0)
    return lambda context: CacheArguments(core="rust", max_states_per_path=limit)


def _kv_order(name: str, **config: Any) -> Recipe:
    return lambda context: CacheArguments(
        core="rust", kv_order=name, kv_order_config=config or None
    )
