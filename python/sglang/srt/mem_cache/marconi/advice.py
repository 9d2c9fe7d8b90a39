"""Replays requests with every split of memory and policy, and says which saves most FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.policy import EvictionPolicy, LruPolicy
from sglang.srt.mem_cache.marconi.recording import HashedRequest
from sglang.srt.mem_cache.marconi.savings import CostModel
from sglang.srt.mem_cache.marconi.tuning.elastic_cache import ElasticShadowCache
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from sglang.srt.mem_cache.marconi.tuning.splits import FEWEST, resplit
from sglang.srt.mem_cache.marconi.value.policy import ValuePolicy

#: ``--mamba-full-memory-ratio``: bytes of states to a byte of KV; SGLang's default is 0.9.
RATIOS = (0.1, 0.2, 0.3, 0.5, 0.9, 2.0, 4.0)
DEFAULT_RATIO = 0.9
#: Tokens: ``--chunked-prefill-size`` and ``--mamba-track-interval``.
CHUNK_TOKENS, TRACK_TOKENS = 8192, 256
#: An advice other than stock's must save this share of all FLOPs more.
WORTHWHILE = 0.002


@dataclass(frozen=True)
class PolicyRow:
    """A policy that may be advised.

    Attributes:
        static: makes it for pools of their own.
        flags: how the server is told.
        elastic: makes it for shared memory, ``None`` where it cannot choose between both pools.
        admission: as ``--marconi-admission``.
        states_per_path: as ``--mamba-max-states-per-path``.
    """

    static: Callable[[CostModel], EvictionPolicy]
    flags: str
    elastic: Callable[[CostModel], EvictionPolicy] | None = None
    admission: str = "sglang"
    states_per_path: int = -1


def _lru(cost: CostModel) -> EvictionPolicy:
    return LruPolicy()


def _shared_value(cost: CostModel) -> EvictionPolicy:
    return ValuePolicy(cost, shared=True)


STOCK = "stock LRU"
_CAP, _VALUE = "--mamba-max-states-per-path", "--marconi-evict-policy 3"
_JUDICIOUS = "--marconi-admission judicious"
POLICY_ROWS: dict[str, PolicyRow] = {
    STOCK: PolicyRow(_lru, ""),
    **{
        f"stock LRU, {cap} states a path": PolicyRow(_lru, f"{_CAP} {cap}", states_per_path=cap)
        for cap in (2, 4)
    },
    "policy 1 (LRU), judicious": PolicyRow(
        _lru, f"--marconi-evict-policy 1 {_JUDICIOUS}", admission="judicious"
    ),
    "policy 3 (value)": PolicyRow(ValuePolicy, _VALUE, _shared_value),
    "policy 3, judicious": PolicyRow(
        ValuePolicy, f"{_VALUE} {_JUDICIOUS}", _shared_value, admission="judicious"
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
            advised: not every server can share its memory.
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
    rows: Sequence[str] = tuple(POLICY_ROWS),
) -> Advice:
    """Replay ``requests`` from an empty cache under every policy and split.

    Args:
        memory_bytes: of both pools together.
        block_tokens: tokens a block of the requests' hashes.
        rows: of :data:`POLICY_ROWS` to try; stock LRU always is.

    Raises:
        ValueError: no requests, too little memory for any split, or an unknown row.
    """
    unknown = [name for name in rows if name not in POLICY_ROWS]
    if unknown:
        raise ValueError(f"policy {unknown[0]!r}; allowed are {', '.join(POLICY_ROWS)}")
    if not requests:
        raise ValueError("the trace has no requests; allowed is 1 or more")
    tried = tuple(sorted({*ratios, DEFAULT_RATIO}))
    saved: dict[str, float] = {}
    choices: dict[str, tuple[str, float]] = {}
    shared = [0.0]
    for name in dict.fromkeys((STOCK, *rows)):
        row = POLICY_ROWS[name]
        base = ShadowShape(
            *(block_tokens, 1, 1, *_steps(block_tokens)),
            admission=row.admission,
            states_per_path=row.states_per_path,
        )
        for ratio in tried:
            shape = resplit(base, cost, memory_bytes, ratio)
            if shape is not None:
                cache = ShadowCache(shape, row.static(cost))
                key = f"{name}/{ratio:g}"
                saved[key], choices[key] = share_saved(cache, requests, cost), (name, ratio)
        if row.elastic is not None:
            elastic = ElasticShadowCache(base, row.elastic(cost), cost, memory_bytes)
            shared.append(share_saved(elastic, requests, cost))
            saved[f"{name}/elastic"] = shared[-1]
    stock = saved.get(f"{STOCK}/{DEFAULT_RATIO:g}")
    if stock is None:
        raise ValueError(
            f"memory is {memory_bytes / 2**30:g} GiB, too little for {FEWEST} states and "
            f"{FEWEST} blocks of KV at ratio {DEFAULT_RATIO:g}"
        )
    best = max(choices, key=lambda key: saved[key])
    if saved[best] < stock + WORTHWHILE:
        best = f"{STOCK}/{DEFAULT_RATIO:g}"
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


def _steps(block_tokens: int) -> tuple[int, int]:
    return max(CHUNK_TOKENS // block_tokens, 1), max(TRACK_TOKENS // block_tokens, 1)
