"""The same row from the shadow: block hashes alone, some ten times faster, and elastic memory.

Under ``elastic`` memory KV and states come from one budget of bytes (SGLang's
``--enable-unified-memory`` without its fragments), and a policy must choose between a state and a
leaf of KV.
"""

from __future__ import annotations

import itertools
import math
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from policies import CacheArguments, PolicyContext, cache_arguments
from policies.shared import SharedOrderPolicy
from sglang.srt.mem_cache.marconi.advice.load.arrivals import Arrival, Sent
from sglang.srt.mem_cache.marconi.advice.load.served import (
    CHUNK_TOKENS,
    GRID_TOKENS,
    TRACK_TOKENS,
    Served,
)
from sglang.srt.mem_cache.marconi.advice.loaded_shadow import LoadedShadow, ShadowRun
from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.eviction.lru import LruPolicy
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.registry import create_policy
from sglang.srt.mem_cache.marconi.eviction.savings import SAVINGS, CostModel
from sglang.srt.mem_cache.marconi.eviction.value import ValuePolicy
from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.tree import NO_NAMESPACE, Namespace
from sglang.srt.mem_cache.marconi.tuning.block_hashes import BlockHasher
from sglang.srt.mem_cache.marconi.tuning.elastic_cache import ElasticShadowCache
from sglang.srt.mem_cache.marconi.tuning.hosted_cache import HostedShadowCache, HostShape
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from sglang.srt.mem_cache.marconi.tuning.shadow_node import ShadowNode
from sglang.srt.mem_cache.marconi.tuning.shadow_tree import ShadowTree
from traces import Request

from lab.costs import load_cost
from lab.hints import hinted
from lab.loaded import serve_loaded
from lab.losses import LossLedger, chain_hashes
from lab.served import named_blocks
from lab.spec import RunSpec
from lab.totals import REASONS, Totals


def simulate_shadow(spec: RunSpec, context: PolicyContext) -> dict[str, Any]:
    """Run a spec on the shadow, and return its row.

    Raises:
        OSError, ValueError: a trace that cannot be used, or what the shadow does not simulate.
    """
    started = time.perf_counter()
    cache = shadow_cache(spec, context)
    cost = load_cost(spec.model)
    totals = Totals(cost, spec.block, first=spec.first_measured(), service=spec.service)
    requests = spec.requests()
    rate = math.inf if spec.host is None else spec.host.bytes_per_second
    world = ShadowWorld(*(cache, spec.block), cost=context.cost, copy_rate=rate, ledger=spec.ledger)
    for served in serve_loaded(spec, world, hinted(requests, spec)):
        totals.add(served)
    return {
        **spec.columns(),
        **totals.as_row(),
        **({} if spec.ledger else {"token_hit_rate_bound": None}),
        "copied_bytes": copied_bytes(cache, context.cost),
        "corrupt_lines": requests.skipped,
        "lost_tokens": dict.fromkeys(REASONS),
        "evictions": {"all": cache.evictions},
        "states_taken_back": 0,
        "fallbacks_to_lru": 0,
        "seconds": round(time.perf_counter() - started, 3),
    }


def shadow_cache(spec: RunSpec, context: PolicyContext) -> ShadowCache:
    """An empty shadow of the server that a spec describes; lengths in blocks of its trace.

    Raises:
        ValueError: what the shadow does not simulate.
    """
    arguments = cache_arguments(spec.policy, context)
    policy = shadow_policy(spec, arguments, context)
    shape = ShadowShape(
        block_tokens=1,
        kv_blocks=context.kv_tokens,
        state_slots=context.state_slots,
        chunk=max(CHUNK_TOKENS // spec.block, 1),
        track=max(TRACK_TOKENS // spec.block, 1),
        grid=max(GRID_TOKENS // spec.block, 1),
        admission=spec.admission,
        states_per_path=arguments.max_states_per_path,
    )
    cost = context.cost
    budget = context.kv_tokens * cost.kv_bytes_per_token + context.state_slots * cost.state_bytes
    cache: ShadowCache
    if spec.host is not None:
        share = spec.host.share
        pools = int(share * context.kv_tokens), int(share * context.state_slots)
        cache = HostedShadowCache(shape, policy, HostShape(*pools, spec.host.write_policy))
    elif spec.memory == "static":
        cache = ShadowCache(shape, policy)
    else:
        cache = ElasticShadowCache(shape, policy, cost, budget)
    attach = getattr(policy, "attach", None)
    if attach is not None:
        attach(ShadowReader(cache.tree))
    return cache


def copied_bytes(cache: ShadowCache, cost: CostModel) -> dict[str, int] | None:
    """See :class:`lab.bases.World`; ``None`` without a host tier."""
    if not isinstance(cache, HostedShadowCache):
        return None
    copied = {"written": cache.written, "loaded": cache.loaded}
    tokens = cache.shape.block_tokens
    return {name: round(of.bytes(cost, tokens)) for name, of in copied.items()}


def shadow_policy(
    spec: RunSpec, arguments: CacheArguments, context: PolicyContext
) -> EvictionPolicy:
    """The policy that a ``--policy`` names, as the shadow runs it.

    Raises:
        ValueError: it needs SGLang's own orders or pools of its own, or orders each pool by itself
            where both share their memory.
    """
    policy, elastic = arguments.policy, spec.memory == "elastic"
    if arguments.kv_order != "lru" or arguments.kv_tokens is not None:
        raise ValueError(f"--policy is {spec.policy!r}; it needs --engine sglang")
    if policy is None:
        return SharedOrderPolicy() if elastic else LruPolicy()
    if not isinstance(policy, int):
        if elastic and not getattr(policy, "shared", False):
            raise ValueError(f"--policy is {spec.policy!r}, {_ELASTIC}")
        return policy
    if elastic:
        if policy != 3:
            raise ValueError(f"--policy is {spec.policy!r}, {_ELASTIC}")
        return ValuePolicy(context.cost, shared=True)
    config = MarconiConfig.from_options({"marconi_evict_policy": policy, **arguments.options})
    assert config is not None
    if config.marconi_evict_policy == 2 and not isinstance(config.marconi_eff_weight, float):
        raise ValueError(
            f"--policy is {spec.policy!r}, whose weight the server tunes; allowed with --engine "
            "shadow is one with its weight, as server:2:0.5"
        )
    return create_policy(config, SAVINGS[config.marconi_savings](context.cost))


_ELASTIC = (
    "which orders each pool by itself; allowed with --memory elastic are lru, superseded, "
    "value, server:3, clairvoyant, s3fifo, arc, lirs, 2q, sieve, lhd"
)


class ShadowReader:
    """A shadow's tree as a ``TreeReader``; tokens are chained hashes of blocks."""

    def __init__(self, tree: ShadowTree) -> None:
        self._tree = tree
        self.root_node = tree.root

    def node_by_id(self, node_id: int) -> ShadowNode:
        node = self._tree.node(node_id)
        assert node is not None, f"node {node_id} left the tree"
        return node

    @staticmethod
    def holds_state(node: ShadowNode) -> bool:
        return node.has_state

    @staticmethod
    def state_survives(node: ShadowNode) -> bool:
        return node.survives

    @staticmethod
    def state_is_locked(node: ShadowNode) -> bool:
        return node.state_locks > 0

    @staticmethod
    def is_evictable_leaf(node: ShadowNode) -> bool:
        return node.is_evictable_leaf

    @staticmethod
    def tokens_of(key: array[int]) -> array[int]:
        return key

    @staticmethod
    def namespace_of(key: array[int]) -> Namespace:
        return NO_NAMESPACE


class LedgerRun(ShadowRun):
    """Counts which blocks were seen before and have to be computed again."""

    def __init__(
        self,
        cache: ShadowCache,
        block_tokens: int,
        index: int,
        request: HashedRequest,
        finish_copies: Callable[[], float],
        ledger: LossLedger,
    ) -> None:
        super().__init__(cache, block_tokens, index, request, finish_copies)
        self._ledger = ledger
        chain = request.prompt_ids[: self.whole]
        self.served.lost = ledger.look_up(chain, self.hit, self.hit)

    def finish(self) -> None:
        super().finish()
        if self.served.served:
            self._ledger.computed(self.request.prompt_ids + self.request.output_ids)


class ShadowWorld(LoadedShadow):
    """Feeds requests of a trace to a shadow and says what each found."""

    def __init__(
        self,
        cache: ShadowCache,
        block_tokens: int,
        *,
        cost: CostModel | None = None,
        copy_rate: float = math.inf,
        ledger: bool = True,
    ) -> None:
        super().__init__(cache, block_tokens, cost, copy_rate)
        self.ledger = LossLedger() if ledger else None
        self._fresh: Iterator[int] = itertools.count(1 << 40)
        self._served = 0

    def serve(self, request: Request) -> Served:
        """Serve one request alone."""
        run = self.begin(Arrival(self._served, "", 0, request))
        self._served += 1
        run.admit()
        run.next_chunk()
        run.finish_chunk()
        run.finish()
        return run.served

    def prompt_hashes(self, request: Sent) -> array[int]:
        return _chained(request.prompt_ids[: request.input_length // self.block_tokens])

    def begin(self, arrival: Arrival) -> ShadowRun:
        request = cast(Request, arrival.request)
        prompt, output = named_blocks(request, self.block_tokens, self._fresh)
        observe = getattr(self.cache.policy, "begin", None)
        if observe is not None:
            observe(arrival.index, prompt, output)
        hashed = _hashed(request, len(prompt), _chained(prompt + output))
        shared = (self.cache, self.block_tokens, arrival.index, hashed, self.finish_copies)
        return ShadowRun(*shared) if self.ledger is None else LedgerRun(*shared, self.ledger)


def _chained(ids: Sequence[int]) -> array[int]:
    return array("Q", (hash & (2**64 - 1) for hash in chain_hashes(ids)))


def _hashed(request: Request, prompt: int, hashes: array[int]) -> HashedRequest:
    return HashedRequest(
        request.input_length,
        hashes[:prompt],
        hashes[prompt:],
        None if request.hint is None else Hint(request.hint),
        output_length=request.output_length,
        session=request.session,
        timestamp_ms=request.timestamp_ms,
    )


def hashed_requests(requests: Iterable[Request], block: int) -> Iterator[HashedRequest]:
    """The requests of a trace as chained block hashes."""
    hasher, fresh = BlockHasher(1), itertools.count(1 << 40)
    for request in requests:
        prompt, output = named_blocks(request, block, fresh)
        hashes = array("Q", hasher.extend(0, 0, prompt + output).tobytes())
        yield _hashed(request, len(prompt), hashes)
