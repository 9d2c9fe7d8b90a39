"""Replays requests with every split of memory and policy, and says which saves most FLOPs."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.policy import EvictionPolicy, LruPolicy
from sglang.srt.mem_cache.marconi.savings import CostModel
from sglang.srt.mem_cache.marconi.tuning.elastic_cache import ElasticShadowCache
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from sglang.srt.mem_cache.marconi.value.policy import ValuePolicy

#: ``--mamba-full-memory-ratio``: bytes of states to a byte of KV; SGLang's default is 0.9.
RATIOS = (0.1, 0.2, 0.3, 0.5, 0.9, 2.0, 4.0)
DEFAULT_RATIO = 0.9
#: Tokens: ``--chunked-prefill-size`` and ``--mamba-track-interval``.
CHUNK_TOKENS, TRACK_TOKENS = 8192, 256
#: A split must leave the pools room for so many states and blocks to be tried at all.
FEWEST_STATES, FEWEST_BLOCKS = 8, 8
#: An advice other than stock's must save this share of all FLOPs more.
WORTHWHILE = 0.002


@dataclass(frozen=True)
class HashedRequest:
    """A request as chained block hashes (:class:`BlockHasher`).

    Attributes:
        prompt_tokens: length of its prompt.
        prompt: hashes of the prompt's whole blocks.
        generated: hashes of the blocks filled beyond them.
    """

    prompt_tokens: int
    prompt: array[int]
    generated: array[int]


@dataclass(frozen=True)
class PolicyRow:
    """A policy that may be advised.

    Attributes:
        static: makes it for pools of their own.
        elastic: makes it for shared memory, ``None`` where it cannot choose between both pools.
        flags: how the server is told.
    """

    static: Callable[[CostModel], EvictionPolicy]
    elastic: Callable[[CostModel], EvictionPolicy] | None
    flags: str


POLICY_ROWS: dict[str, PolicyRow] = {
    "stock LRU": PolicyRow(lambda cost: LruPolicy(), None, ""),
    "policy 3 (value)": PolicyRow(
        ValuePolicy, lambda cost: ValuePolicy(cost, shared=True), "--marconi-evict-policy 3"
    ),
}


@dataclass(frozen=True)
class Advice:
    """What saves most.

    Attributes:
        policy: a key of :data:`POLICY_ROWS`.
        ratio: ``--mamba-full-memory-ratio``.
        best_saved, stock_saved: share of the prompts' FLOPs saved by it, and by stock LRU at the
            default ratio.
        elastic_saved: what one budget for KV and states would save at most. It is measured, not
            advised: policy 3 does not yet choose between both pools on a server.
        requests: how many were replayed.
        ratios: that were tried.
        saved: share of FLOPs saved, by "policy/ratio" and "policy/elastic".
    """

    policy: str
    ratio: float
    best_saved: float
    stock_saved: float
    elastic_saved: float
    requests: int
    ratios: tuple[float, ...]
    saved: Mapping[str, float]


def advise(
    requests: Sequence[HashedRequest],
    cost: CostModel,
    memory_bytes: float,
    *,
    block_tokens: int,
    ratios: Sequence[float] = RATIOS,
) -> Advice:
    """Replay ``requests`` from an empty cache under every policy and split.

    Args:
        memory_bytes: of both pools together.
        block_tokens: tokens a block of the requests' hashes.

    Raises:
        ValueError: no requests, or too little memory for any split.
    """
    if not requests:
        raise ValueError("the trace has no requests; allowed is 1 or more")
    tried = tuple(sorted({*ratios, DEFAULT_RATIO}))
    saved: dict[str, float] = {}
    choices: dict[str, tuple[str, float]] = {}
    shared = [0.0]
    for name, row in POLICY_ROWS.items():
        for ratio in tried:
            shape = _shape(cost, memory_bytes, ratio, block_tokens)
            if shape is not None:
                cache = ShadowCache(shape, row.static(cost))
                key = f"{name}/{ratio:g}"
                saved[key], choices[key] = share_saved(cache, requests, cost), (name, ratio)
        if row.elastic is not None:
            shape = ShadowShape(block_tokens, 1, 1, *_steps(block_tokens))
            elastic = ElasticShadowCache(shape, row.elastic(cost), cost, memory_bytes)
            shared.append(share_saved(elastic, requests, cost))
            saved[f"{name}/elastic"] = shared[-1]
    stock = saved.get(f"stock LRU/{DEFAULT_RATIO:g}")
    if stock is None:
        raise ValueError(
            f"memory is {memory_bytes / 2**30:g} GiB, too little for {FEWEST_STATES} states and "
            f"{FEWEST_BLOCKS} blocks of KV at ratio {DEFAULT_RATIO:g}"
        )
    best = max(choices, key=lambda key: saved[key])
    if saved[best] < stock + WORTHWHILE:
        best = f"stock LRU/{DEFAULT_RATIO:g}"
    policy, ratio_chosen = choices[best]
    return Advice(
        policy, ratio_chosen, saved[best], stock, max(shared), len(requests), tried, saved
    )


def share_saved(cache: ShadowCache, requests: Sequence[HashedRequest], cost: CostModel) -> float:
    """Share of the prompts' FLOPs that hits save, one request at a time."""
    done = needed = 0.0
    for id, request in enumerate(requests):
        hit = cache.begin(id, request.prompt, request.prompt_tokens)
        cache.end(id, request.generated)
        done += cost.flops(0, hit * cache.shape.block_tokens)
        needed += cost.flops(0, request.prompt_tokens)
    return done / needed if needed else 0.0


def _shape(cost: CostModel, memory: float, ratio: float, block_tokens: int) -> ShadowShape | None:
    kv = memory / (1 + ratio)
    blocks = int(kv / (cost.kv_bytes_per_token * block_tokens))
    states = int((memory - kv) / cost.state_bytes)
    if blocks < FEWEST_BLOCKS or states < FEWEST_STATES:
        return None
    return ShadowShape(block_tokens, blocks, states, *_steps(block_tokens))


def _steps(block_tokens: int) -> tuple[int, int]:
    return max(CHUNK_TOKENS // block_tokens, 1), max(TRACK_TOKENS // block_tokens, 1)
