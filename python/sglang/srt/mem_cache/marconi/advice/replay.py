"""Replays requests with every split of memory and policy, and says which saves most FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.advice.load.served import CHUNK_TOKENS, TRACK_TOKENS
from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest
from sglang.srt.mem_cache.marconi.eviction.lru import LruPolicy
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from sglang.srt.mem_cache.marconi.eviction.value.policy import ValuePolicy
from sglang.srt.mem_cache.marconi.tuning.elastic_cache import ElasticShadowCache
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from sglang.srt.mem_cache.marconi.tuning.splits import FEWEST, resplit

#: ``--mamba-full-memory-ratio``: bytes of states to a byte of KV; SGLang's default is 0.9.
RATIOS = (0.1, 0.2, 0.3, 0.5, 0.9, 2.0, 4.0)
DEFAULT_RATIO = 0.9
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
#: The column of memory that KV and states share.
ELASTIC = "elastic"
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
    "policy 3, judicious": PolicyRow(ValuePolicy, f"{_VALUE} {_JUDICIOUS}", admission="judicious"),
}


@dataclass(frozen=True)
class Option:
    """A way to run the server.

    Attributes:
        policy: a key of :data:`POLICY_ROWS`.
        ratio: ``--mamba-full-memory-ratio``; ``None``: ``--enable-unified-memory``.
        saved: share of the prompts' FLOPs that it saves.
        token_hit_rate: share of the prompts' tokens that hit.
    """

    policy: str
    ratio: float | None
    saved: float
    token_hit_rate: float

    @property
    def memory(self) -> str:
        """The column of :attr:`Advice.saved`."""
        return ELASTIC if self.ratio is None else f"{self.ratio:g}"


@dataclass(frozen=True)
class Advice:
    """What saves most.

    Attributes:
        best: of all that was tried; stock LRU at the default ratio unless :data:`WORTHWHILE`.
        static: the best with a pool each for states and KV.
        stock: LRU at the default ratio.
        requests: how many were replayed.
        ratios: that were tried.
        saved: share of FLOPs saved, by policy and by ratio or "elastic".
    """

    best: Option
    static: Option
    stock: Option
    requests: int
    ratios: tuple[float, ...]
    saved: Mapping[str, Mapping[str, float]]


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
    options = []
    for name in dict.fromkeys((STOCK, *rows)):
        for ratio in (*tried, None):
            cache = shadow_of(name, ratio, cost, memory_bytes, block_tokens)
            if cache is not None:
                options.append(Option(name, ratio, *shares(cache, requests, cost)))
    stock = next((o for o in options if (o.policy, o.ratio) == (STOCK, DEFAULT_RATIO)), None)
    if stock is None:
        raise ValueError(
            f"memory is {memory_bytes / 2**30:g} GiB, too little for {FEWEST} states and "
            f"{FEWEST} blocks of KV at ratio {DEFAULT_RATIO:g}"
        )
    saved: dict[str, dict[str, float]] = {}
    for option in options:
        saved.setdefault(option.policy, {})[option.memory] = option.saved
    return Advice(
        best=_best(options, stock),
        static=_best([option for option in options if option.ratio is not None], stock),
        stock=stock,
        requests=len(requests),
        ratios=tried,
        saved=saved,
    )


def _best(options: Sequence[Option], stock: Option) -> Option:
    best = max(options, key=lambda option: option.saved)
    return best if best.saved >= stock.saved + WORTHWHILE else stock


def shadow_of(
    policy: str, ratio: float | None, cost: CostModel, memory_bytes: float, block_tokens: int
) -> ShadowCache | None:
    """An empty cache of an option; ``None``: too little memory, or no policy for one memory.

    Args:
        policy, ratio: see :class:`Option`.
        memory_bytes: of both pools together.
    """
    row = POLICY_ROWS[policy]
    base = server_shape(row, block_tokens)
    if ratio is not None:
        shape = resplit(base, cost, memory_bytes, ratio)
        return None if shape is None else ShadowCache(shape, row.static(cost))
    if row.elastic is None:
        return None
    return ElasticShadowCache(base, row.elastic(cost), cost, memory_bytes)


def server_shape(row: PolicyRow, block_tokens: int) -> ShadowShape:
    """The server that is replayed; its pools are yet to be sized."""
    chunk, track = (max(tokens // block_tokens, 1) for tokens in (CHUNK_TOKENS, TRACK_TOKENS))
    return ShadowShape(
        *(block_tokens, 1, 1, chunk, track),
        admission=row.admission,
        states_per_path=row.states_per_path,
    )


def share_saved(cache: ShadowCache, requests: Sequence[HashedRequest], cost: CostModel) -> float:
    """Share of the prompts' FLOPs that hits save, one request at a time."""
    return shares(cache, requests, cost)[0]


def shares(
    cache: ShadowCache, requests: Sequence[HashedRequest], cost: CostModel
) -> tuple[float, float]:
    """Shares of the prompts' FLOPs and of their tokens that hits save, one request at a time."""
    done = needed = 0.0
    hits = tokens = 0
    for id, request in enumerate(requests):
        hit = cache.begin(id, request.prompt_ids, request.input_length) * cache.shape.block_tokens
        cache.end(id, request.output_ids, request.hint)
        done += cost.flops(0, hit)
        needed += cost.flops(0, request.input_length)
        hits += hit
        tokens += request.input_length
    return (done / needed if needed else 0.0, hits / tokens if tokens else 0.0)
