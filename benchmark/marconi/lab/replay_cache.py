"""Serves the requests of a trace from a real prefix cache, as SGLang's scheduler would.

One pool slot stands for one block of the trace, so that a long trace replays in minutes. What
enters the state pool follows the cache's ``--marconi-admission`` under ``extra_buffer``. SGLang
0.5.23's own choice: a state at the end of every prefill chunk (or at the branch point inside it),
at the end of the prompt, and at the last decode interval.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from sglang.srt.managers.schedule_batch import ReqKvInfo
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.marconi.admission.rules import ADMISSIONS, Chunk, forwards
from sglang.srt.mem_cache.marconi.advice.load.arrivals import Arrival
from sglang.srt.mem_cache.marconi.advice.load.scheduler import Run
from sglang.srt.mem_cache.marconi.advice.load.schedules import TOUCH_INTERVAL, Waiting
from sglang.srt.mem_cache.marconi.advice.load.served import (
    CHUNK_TOKENS,
    GRID_TOKENS,
    TRACK_TOKENS,
    OutOfMemory,
    Served,
)
from sglang.srt.mem_cache.marconi.eviction.policy import HintObserver
from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.radix_cache import RadixKey
from traces import Request

from lab.cpu_cache import CpuCache
from lab.host_tier import HostTier
from lab.losses import LossLedger, chain_hashes
from lab.served import named_blocks

#: State slots that a running request holds under ``extra_buffer``; one less on a server that
#: schedules without overlap, as all do on a CPU.
WORKING_STATES = 3


class Replay:
    """Feeds requests to one cache; every slot taken is given back or owned by the tree.

    Args:
        tier: the host's memory below the cache; copies to and from it are done at once.
        copy_rate: bytes a second of a copy that is waited for.
    """

    def __init__(
        self,
        cache: CpuCache,
        block_tokens: int,
        *,
        chunk_tokens: int = CHUNK_TOKENS,
        working_states: int = WORKING_STATES,
        tier: HostTier | None = None,
        copy_rate: float = 0.0,
    ) -> None:
        self.cache = cache
        self.tier = tier
        self.copy_rate = copy_rate
        self._waited_for = 0.0
        self.block_tokens = block_tokens
        self.chunk_tokens = chunk_tokens
        self.working_states = working_states
        #: Requests scheduled so far, by a server also before the replay.
        self.passes = 0
        self.ledger = LossLedger()
        self._fresh: Iterator[int] = itertools.count(1 << 40)
        self._served = 0

    def serve(self, request: Request) -> Served:
        """Serve one request alone; one that does not fit into an empty cache is not served."""
        prompt, output = named_blocks(request, self.block_tokens, self._fresh)
        self._observe(self._served, prompt, output)
        self._look_ahead(prompt)
        run = RequestRun(self, request, self._served, prompt, output)
        self._served += 1
        run.admit()
        try:
            while run.next_chunk() is not None:
                run.finish_chunk()
            run.decode()
        except OutOfMemory:
            run.served.served = False
        run.finish()
        return run.served

    def finish_copies(self) -> float:
        """What is under way to the host and from it is there; the seconds that were waited for it.

        SGLang waits for what it loads, and under ``write_back`` for what it writes, whose place on
        the device it needs.
        """
        tier = self.tier
        if tier is None:
            return 0.0
        tier.complete()
        cost = self.cache.cost
        copied = tier.loaded.bytes(cost)
        if tier.write_policy == "write_back":
            copied += tier.written.bytes(cost)
        before, self._waited_for = self._waited_for, copied
        return (copied - before) / self.copy_rate

    # -- what a scheduler asks

    @property
    def matches_all(self) -> bool:
        return bool(self.cache.cache.supports_fast_match_prefix())

    def look(self, waiting: Waiting) -> int:
        request, block = waiting.arrival.request, self.block_tokens
        stand_in = self._stand_in(waiting)
        # The last token of a prompt is always computed, so its block cannot hit.
        key = RadixKey(stand_in.origin_input_ids, limit=len(stand_in.origin_input_ids) - 1)
        found = self.cache.look_up(key)
        stand_in.best_match_node = found.best_match_node
        return min(int(found.device_prefix_len), (request.input_length - 1) // block) * block

    def note_queue(self, queue: Sequence[Waiting], *, matched: bool) -> None:
        note = getattr(self.cache.cache, "note_queue", None)
        if note is not None:
            note([self._stand_in(one) for one in queue], matched=matched)

    def begin(self, arrival: Arrival) -> RequestRun:
        """Match a request's prompt and lock what it found.

        A policy with a method ``begin(index, prompt_ids, output_ids)`` is told; the index is the
        request's place in the trace, counted from 0.
        """
        request = cast(Request, arrival.request)
        prompt, output = named_blocks(request, self.block_tokens, self._fresh)
        self._observe(arrival.index, prompt, output)
        return RequestRun(self, request, arrival.index, prompt, output)

    def fits(self, runs: Sequence[Run]) -> bool:
        pools, cache = self.cache, self.cache.cache
        kv = pools.allocator.available_size() + cache.full_evictable_size()
        states = pools.requests.mamba_allocator.available_size() + cache.mamba_evictable_size()
        needing = [cast(RequestRun, run) for run in runs]
        # Beside its working states a request needs one for what it gives to the tree.
        return bool(
            sum(one.kv_missing for one in needing) <= kv
            and sum(one.states_missing + 1 for one in needing) <= states
        )

    # -- internals

    def _stand_in(self, waiting: Waiting) -> Any:
        """For SGLang's request, as far as the cache reads it while it waits."""
        if waiting.looked_up is None:
            request = waiting.arrival.request
            whole = (request.input_length - 1) // self.block_tokens
            waiting.looked_up = SimpleNamespace(
                rid="",
                session=None,
                origin_input_ids=array("q", (*request.prompt_ids[:whole], 0)),
                output_ids=array("q"),
                extra_key=None,
                cache_salt=None,
            )
        return waiting.looked_up

    def _observe(self, index: int, prompt: list[int], output: list[int]) -> None:
        observe = getattr(self.cache.policy, "begin", None)
        if observe is not None:
            observe(index, prompt, output)

    def _look_ahead(self, prompt: list[int]) -> None:
        """What the scheduler does to the tree for a request that waits, before it matches it."""
        cache = self.cache.cache
        if cache.supports_fast_match_prefix():
            self.cache.look(prompt)
        elif self.passes % TOUCH_INTERVAL == 0:
            cache.touch_prefix(self.cache.key(prompt))
        self.passes += 1


class RequestRun:
    """One running request: its lock, its working states, its KV that the tree does not own yet.

    After ``admit``, ``next_chunk`` and ``finish_chunk`` alternate until no chunk is left; then
    comes ``decode``; ``finish`` ends it at any point. Depths and lengths without a unit are in
    blocks.
    """

    def __init__(
        self,
        replay: Replay,
        request: Request,
        index: int,
        prompt: list[int],
        output: list[int],
    ) -> None:
        self.request = request
        self._replay, self._cache = replay, replay.cache
        self._prompt, self._tokens = prompt, prompt + output
        self._chain = chain_hashes(self._tokens)
        self._kv = torch.empty(0, dtype=torch.int64)
        self._states: list[torch.Tensor] = []
        # The last token of a prompt is always computed, so its block cannot hit.
        self._whole = (request.input_length - 1) // replay.block_tokens
        matched, self._lookup = self._match(prompt[: self._whole])
        self._resume(matched)
        hit = self.depth + int(matched.host_hit_length)
        lost = replay.ledger.look_up(
            self._chain[: self._whole], hit, max(matched.full_kv_hit_length, hit)
        )
        self.served = Served(
            request.input_length, hit * replay.block_tokens, lost=lost, index=index
        )
        self._branch: int | None = matched.mamba_branching_seqlen
        self._grid = max(GRID_TOKENS // replay.block_tokens, 1)
        setup = getattr(self._cache.cache, "marconi", None)
        self._admission = ADMISSIONS[
            "sglang" if setup is None else setup.config.marconi_admission
        ]()
        self._chunk: tuple[int, int | None] | None = None

    # -- what a scheduler asks before it starts a request

    @property
    def kv_missing(self) -> int:
        """KV that it has yet to allocate until it ends."""
        return len(self._tokens) - self.depth - len(self._kv)

    @property
    def states_missing(self) -> int:
        """Working states that it has yet to allocate."""
        return self._replay.working_states - len(self._states)

    @property
    def prompt_left(self) -> int:
        """Of its prompt, yet to be prefilled."""
        return len(self._prompt) - self._computed

    @property
    def has_chunks(self) -> bool:
        """Some of the prompt is still to be prefilled."""
        return self._ends_whole or self._computed < len(self._prompt)

    # -- its life

    def admit(self) -> None:
        """It is served: what the host has of it is copied, and what it resumes at is used."""
        if self._on_host is not None:
            self._load(self._on_host)
        self._cache.use(self._node, self._lookup)

    def next_chunk(self, limit: int | None = None) -> tuple[int, int] | None:
        """Allocate what the next prefill chunk needs.

        Args:
            limit: its longest, where others share it.

        Returns:
            The tokens that the chunk computes, from and to; ``None`` after the last chunk.

        Raises:
            OutOfMemory: nothing evictable is left.
        """
        if not self.has_chunks:
            return None
        self._chunk = end, _ = self._plan(limit)
        self._hold(end)
        block = self._replay.block_tokens
        last = end == len(self._prompt)
        return self._computed * block, self.request.input_length if last else end * block

    def finish_chunk(self) -> None:
        """The chunk was computed: its state enters the tree."""
        assert self._chunk is not None
        end, state_at = self._chunk
        self._ends_whole = False
        if state_at is not None:
            ends = end == len(self._prompt) and self.request.output_length <= 1
            # Only a request that goes on needs another slot for the one that it gives away.
            self._donate(state_at, self._states.pop() if ends else self._cache.alloc_state())
        self._note_computed(end)

    def decode(self) -> None:
        """Hold KV for the whole output, which comes token by token.

        Raises:
            OutOfMemory: nothing evictable is left.
        """
        while self.kv_missing > 0:
            free = max(int(self._cache.allocator.available_size()), 1)
            self._hold(len(self._tokens) - self.kv_missing + min(free, self.kv_missing))
        self._note_computed(len(self._tokens))

    def finish(self) -> None:
        """Give the last decode interval to the tree, and back what the tree does not own."""
        step = max(TRACK_TOKENS // self._replay.block_tokens, 1)
        tracked = len(self._tokens) // step * step
        if self._computed >= tracked > len(self._prompt):
            self._donate(tracked, self._states.pop(), finished=True)
        if self._lookup is not None and self.served.served:
            self._cache.cache.count_request(self._lookup)
        self.cancel()
        policy, said = self._cache.policy_in_force, self.request.hint
        if said is not None and isinstance(policy, HintObserver):
            policy.on_hint(self._node, Hint(said))

    def cancel(self) -> None:
        """Give back everything that the tree does not own, uncounted."""
        self._cache.cache.unlock(self._lock)
        if len(self._kv):
            self._cache.allocator.free(self._kv)
        for state in self._states:
            self._cache.requests.mamba_allocator.free(state)

    # -- internals

    def _resume(self, matched: Any) -> None:
        """Begin where a lookup ended on the device, and hold that."""
        self.depth = self._computed = int(matched.device_prefix_len)
        self._node = matched.last_device_node
        self._lock = self._cache.cache.lock(self._node)
        on_host = matched.host_hit_length or matched.mamba_host_hit_length
        self._on_host = matched.best_match_node if on_host else None
        # A prompt that hits as a whole ends in a token that fills no block.
        self._ends_whole = self.depth == len(self._prompt)

    def _load(self, node: Any) -> None:
        """Copy from the host to the device what the request can resume at there."""
        replay, cache, before = self._replay, self._cache.cache, self.depth
        assert replay.tier is not None
        cache.load_back(node)
        self.served.copy_seconds += replay.finish_copies()
        cache.unlock(self._lock)
        self._resume(self._cache.look(self._prompt[: self._whole]))
        served, block = self.served, replay.block_tokens
        served.loaded_tokens = (self.depth - before) * block
        served.hit_tokens = self.depth * block

    def _match(self, tokens: list[int]) -> tuple[Any, Any]:
        if not hasattr(self._cache.cache, "marconi_state"):
            return self._cache.look(tokens), None
        blocks = range(-(-self.request.input_length // self._replay.block_tokens))
        lookup = SimpleNamespace(kv=ReqKvInfo(), rid="", session=None, origin_input_ids=blocks)
        return self._cache.look(tokens, req=lookup), lookup

    def _plan(self, limit: int | None) -> tuple[int, int | None]:
        """End of the next chunk, and the depth of the one state that it gives to the tree."""
        prompt = len(self._prompt)
        if self._computed == prompt:
            return prompt, None
        step = max(self._replay.chunk_tokens // self._replay.block_tokens, 1)
        if limit is not None:
            step = min(step, limit)
        rest = Chunk(self._computed, prompt, prompt, self._grid, branch=self._branch)
        chunk = next(forwards(self._admission, rest, step))
        return chunk.end, chunk.state_depth

    def _note_computed(self, end: int) -> None:
        self._replay.ledger.computed(self._chain[self._computed : end])
        self._computed = end

    def _hold(self, end: int) -> None:
        if self.states_missing and self.depth:
            # The matched state is copied before the other slots are sought.
            self._hold_states(1)
        if self.states_missing:
            self._hold_states(self.states_missing)
        missing = end - self.depth - len(self._kv)
        if missing > 0:
            fresh = self._cache.alloc_kv(missing)
            if fresh is None:
                raise OutOfMemory
            self._kv = torch.cat([self._kv, fresh])
        self.served.copy_seconds += self._replay.finish_copies()

    def _hold_states(self, count: int) -> None:
        slots = self._cache.alloc_state(count)
        if slots is None:
            raise OutOfMemory
        self._states += [slots[place : place + 1] for place in range(count)]

    def _donate(self, end: int, state: torch.Tensor | None, *, finished: bool = False) -> None:
        """Give the tree the KV of all blocks before ``end`` with ``state``, if there is one.

        Args:
            finished: the request gives nothing after it.
        """
        if state is None:
            return
        cache = self._cache.cache
        given = end - self.depth
        held = cache.path_device_indices(self._node)[: self.depth]
        result = cache.insert(
            InsertParams(
                key=self._cache.key(self._tokens[:end]),
                value=torch.cat([held, self._kv[:given]]),
                mamba_value=state,
                prev_prefix_len=self.depth,
            )
        )
        if result.mamba_exist:
            self._cache.requests.mamba_allocator.free(state)
        self._kv = self._kv[given:]
        cache.unlock(self._lock)
        self._node = result.last_device_node
        self._lock = cache.lock(self._node)
        self.depth = end
        self.served.copy_seconds += self._replay.finish_copies()
        self._replay.ledger.admitted(self._chain[end - 1])
        admission = getattr(cache, "admission", None)
        if admission is not None:
            undone = admission.follow(
                self,
                *(self._node, end),
                created=not result.mamba_exist,
                stops=() if self._branch is None else (self._branch,),
                grid=self._grid,
                prompt_end=len(self._prompt) if finished else None,
            )
            if undone is not None:
                self._replay.ledger.withdrawn(self._chain[undone - 1])
