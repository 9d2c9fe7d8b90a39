"""Connects the tuner to a live cache: its requests, its pools, its tensor-parallel group."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.marconi.attach.setup import OnError
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.insight.stats import MarconiStats
from sglang.srt.mem_cache.marconi.tree import namespace_of
from sglang.srt.mem_cache.marconi.tuning import wire
from sglang.srt.mem_cache.marconi.tuning.block_hashes import BlockHasher
from sglang.srt.mem_cache.marconi.tuning.controller import Agree, Controller
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowShape
from sglang.srt.mem_cache.marconi.tuning.tuner import Tuner
from sglang.srt.mem_cache.marconi.tuning.worker import WorkerSetup
from sglang.srt.runtime_context import get_exec, mamba_checkpoint_grid, mamba_track_grid

#: Tokens that one hash stands for, unless a page is longer.
BLOCK_TOKENS = 64
#: What happens where it cannot be told.
UNTOLD = "the tuner does without it"


@dataclass(slots=True)
class _Followed:
    """A running request or session: its number in the stream, its whole blocks' chain hash."""

    run_id: int
    blocks: int
    chain: int


class MambaRadixTuning:
    """The tuning of one cache; the scheduler calls it at a request's first checkpoint and release.

    Args:
        controller: counts, and puts weights in force.
        block_tokens: tokens a block of the stream.
        on_error: told of an error in recording, which ends neither serving nor counting.
    """

    def __init__(
        self,
        controller: Controller,
        block_tokens: int,
        on_error: OnError,
    ) -> None:
        self.controller = controller
        self._tuner = controller.tuner
        self._hasher = BlockHasher(block_tokens)
        self._on_error = on_error
        self._followed: dict[str, _Followed] = {}
        self._next_run = 0

    def checkpointed(self, req: Any, evicted: bool) -> None:
        """A request is being served: count it the first time, and pass its prompt on.

        Args:
            evicted: the cache was short of memory at least once.
        """
        if self._tuner is not None:
            try:
                self._follow(req)
            except Exception as error:
                self._on_error("telling the tuner of a request", error, UNTOLD)
        if not getattr(req, "marconi_tuning_counted", False):
            req.marconi_tuning_counted = True
            try:
                self.controller.count_request(evicted)
            except Exception as error:
                self._on_error("counting a request for the tuner", error, UNTOLD)

    def released(self, req: Any, hint: Hint | None = None) -> None:
        """A request gave its memory back, finished or not.

        Args:
            hint: what was said of what follows.
        """
        if self._tuner is not None:
            try:
                self._release(req, hint)
            except Exception as error:
                self._on_error("telling the tuner of a request's end", error, UNTOLD)

    def count_into(self, stats: MarconiStats) -> None:
        """Bring the counters of tuning up to date."""
        stats.adoptions = self.controller.adoptions
        if self._tuner is not None:
            health = self._tuner.health
            stats.tuner_answers = health.answers
            stats.tuner_failures = health.failures
            stats.tuner_restarts = health.restarts

    def flushed(self) -> None:
        """The tree was emptied."""
        self._followed.clear()
        if self._tuner is not None:
            try:
                self._tuner.send(wire.flushed())
            except Exception as error:
                self._on_error("telling the tuner of a flush", error, UNTOLD)

    def session_closed(self, session_id: str) -> None:
        """A streaming session gave its memory back: until then its first prompt was locked."""
        followed = self._followed.pop(session_id, None)
        if followed is not None and self._tuner is not None:
            try:
                self._tuner.send(wire.ended(followed.run_id, b""))
            except Exception as error:
                self._on_error("telling the tuner of a session's end", error, UNTOLD)

    def _follow(self, req: Any) -> None:
        run = _run_of(req)
        if run in self._followed:
            return
        assert self._tuner is not None
        chain = self._hasher.start(namespace_of(req))
        hashes = self._hasher.extend(chain, 0, req.origin_input_ids)
        if len(hashes):
            chain = int(hashes[-1])
        self._followed[run] = _Followed(self._next_run, len(hashes), chain)
        came = arrival_of(req)
        self._tuner.send(
            wire.began(self._next_run, len(req.origin_input_ids), hashes.tobytes(), *came)
        )
        self._next_run += 1

    def _release(self, req: Any, hint: Hint | None) -> None:
        followed = self._followed.pop(_run_of(req), None)
        if followed is None:
            return
        assert self._tuner is not None
        generated = None
        if req.finished():
            tokens = req.full_untruncated_fill_ids[
                followed.blocks * self._hasher.block_tokens : req.kv.kv_committed_len
            ]
            generated = self._hasher.extend(followed.chain, followed.blocks, tokens).tobytes()
        self._tuner.send(wire.ended(followed.run_id, generated, len(req.output_ids), hint))


def arrival_of(req: Any) -> tuple[int, int]:
    """When the scheduler received a request, in ms since 1970, and for how many ms it is here.

    Zeros where SGLang keeps no time of it. For the recording alone: it decides nothing.
    """
    received = getattr(getattr(req, "time_stats", None), "scheduler_recv_time", 0.0)
    if not received:
        return 0, 0
    here = max(time.perf_counter() - received, 0.0)
    return round((time.time() - here) * 1000), round(here * 1000)


def _run_of(req: Any) -> str:
    """What holds a request's memory: the request, or its streaming session until that closes."""
    if req.session is not None and req.session.streaming:
        return str(req.session.session_id)
    return str(req.rid)


def shadow_shape(params: Any) -> ShadowShape:
    """The pools and rules of a server, for its shadow.

    Args:
        params: SGLang's ``CacheInitParams``, with a hybrid model's pools.
    """
    page, pool = params.page_size, params.req_to_token_pool
    block = math.lcm(BLOCK_TOKENS, page)
    chunk = params.chunked_prefill_size or 0
    buffered = params.enable_mamba_extra_buffer
    # Where cached states are compressed, running requests have a pool of their own.
    compressed = getattr(pool, "mamba_ckpt_pool", None)
    working = 1 + (pool.mamba_initial_tracking_slots if buffered else 0)
    return ShadowShape(
        block_tokens=block,
        kv_blocks=params.token_to_kv_pool_allocator.size // block,
        state_slots=pool.mamba_allocator.size if compressed is None else compressed.num_slots,
        chunk=max(chunk // block, 1) if chunk > 0 else 1 << 30,
        track=max(mamba_track_grid(page) // block, 1) if buffered else 1,
        grid=max(mamba_checkpoint_grid(page) // block, 1) if buffered else 1,
        branches=buffered,
        working_states=working if compressed is None else 0,
        states_per_path=get_exec().mamba.mamba_max_states_per_path,
    )


def make_tuning(
    params: Any,
    config: MarconiConfig,
    cost: ModelCost,
    adopt: Callable[[float], None],
    on_error: OnError,
) -> MambaRadixTuning:
    """The tuning of one scheduler process's cache; the group's first rank starts the tuner.

    Args:
        params: SGLang's ``CacheInitParams``.
    """
    group = params.tp_cache_group
    ranks = 1 if group is None else torch.distributed.get_world_size(group=group)
    shape = replace(shadow_shape(params), admission=config.marconi_admission)

    def setup(current: int | None) -> WorkerSetup:
        return WorkerSetup(
            shape=shape,
            cost=replace(cost, layers=None),
            config=config,
            current=current,
            memory_bytes=config.marconi_tuner_memory_mib << 20,
        )

    is_first = ranks == 1 or torch.distributed.get_rank(group=group) == 0
    tuner = Tuner(setup, config.marconi_tuner_seconds) if is_first else None
    agree = _broadcast(group) if ranks > 1 else None
    controller = Controller(config, tuner, agree, adopt)
    return MambaRadixTuning(controller, shape.block_tokens, on_error)


def _broadcast(group: Any) -> Agree:
    def agree(found: int, chosen: int) -> tuple[int, int]:
        numbers = torch.tensor([found, chosen], dtype=torch.int64)
        torch.distributed.broadcast(numbers, group=group, group_src=0)
        return int(numbers[0]), int(numbers[1])

    return agree
