"""SGLang 0.5.4 for the trace lab: this release's caches behind the lab's rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from cpu_cache_v0_5_4 import CpuCache, read_options
from lab.losses import LossLedger, chain_hashes
from lab.served import named_blocks
from lab.spec import RunSpec
from policies import PolicyContext, cache_arguments
from replay_v0_5_4 import serve
from sglang.srt.mem_cache.marconi.advice.load.served import CHUNK_TOKENS, Served
from sglang.srt.mem_cache.marconi.insight.stats import MarconiStats
from traces import Request


class ForkWorld:
    """See :class:`lab.bases.World`; one request at a time."""

    def __init__(self, cache: CpuCache, block_tokens: int) -> None:
        self.stats: MarconiStats | None = getattr(cache.cache, "stats", None)
        self._cache = cache
        self._block = block_tokens
        self._ledger = LossLedger()
        self._fresh: Iterator[int] = itertools.count(1 << 40)
        self._served = 0

    @property
    def copied_bytes(self) -> None:
        """This base is driven without a host tier."""

    def serve(self, requests: Iterable[Request]) -> Iterator[Served]:
        return map(self._serve, requests)

    def _serve(self, request: Request) -> Served:
        prompt, output = named_blocks(request, self._block, self._fresh)
        observe = getattr(self._cache.policy, "begin", None)
        if observe is not None:
            observe(self._served, prompt, output)
        index, self._served = self._served, self._served + 1
        # The last token of a prompt is always computed, so its block cannot hit.
        whole = (request.input_length - 1) // self._block
        chunk = max(CHUNK_TOKENS // self._block, 1)
        found = serve(self._cache, prompt, output, chunk=chunk, matchable=whole)
        chain = chain_hashes([*prompt, *output])
        lost = self._ledger.look_up(chain[:whole], found.hit, found.kv_alive)
        for depth in filter(None, found.states):
            self._ledger.admitted(chain[depth - 1])
        self._ledger.computed(chain[: found.computed])
        hit = found.hit * self._block
        return Served(request.input_length, hit, served=found.served, lost=lost, index=index)

    def check(self) -> None:
        """Every slot is free or evictable once nothing runs.

        SGLang's own ``sanity_check`` compares LRU lists with times that one decision a millisecond
        blurs.
        """
        cache, pools = self._cache.cache, self._cache
        kv = pools.allocator.available_size() + cache.full_evictable_size()
        states = pools.requests.mamba_pool.available_size() + cache.mamba_evictable_size()
        if (kv, states) != (pools.kv_tokens, pools.state_slots):
            raise RuntimeError(
                f"of {pools.kv_tokens} KV slots and {pools.state_slots} states {kv} and {states} "
                f"are free or evictable after the last request"
            )


def check_world(spec: RunSpec, context: PolicyContext) -> None:
    """See :meth:`lab.bases.BaseModule.check_world`."""
    if spec.memory == "elastic":
        raise ValueError(
            "--memory is elastic but --base is 0.5.4, which has no unified memory; allowed with it "
            "is --memory static"
        )
    if spec.concurrency is not None:
        raise ValueError(
            f"--concurrency is {spec.concurrency}; allowed with --base 0.5.4 is to leave it out: "
            f"one request at a time"
        )
    if spec.admission != "sglang":
        raise ValueError(f"--admission is {spec.admission!r}; allowed with --base 0.5.4 is sglang")
    arguments = cache_arguments(spec.policy, context)
    if arguments.kv_order != "lru" or arguments.max_states_per_path != -1:
        raise ValueError(
            f"--policy is {spec.policy!r}, which SGLang 0.5.4 does not have; allowed with --base "
            f"0.5.4 are lru, infinite and those of Marconi"
        )
    if isinstance(arguments.policy, int):
        read_options(arguments.policy, arguments.options)


@contextmanager
def open_world(spec: RunSpec, context: PolicyContext) -> Iterator[ForkWorld]:
    """See :meth:`lab.bases.BaseModule.open_world`."""
    arguments = cache_arguments(spec.policy, context)
    cache = CpuCache(
        policy=arguments.policy,
        kv_tokens=arguments.kv_tokens or context.kv_tokens,
        state_slots=arguments.state_slots or context.state_slots,
        cost=context.cost,
        options=arguments.options,
    )
    world = ForkWorld(cache, spec.block)
    yield world
    world.check()
