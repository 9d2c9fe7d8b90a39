"""Serves the requests of a trace from a real prefix cache, as SGLang's scheduler would.

One pool slot stands for one block of the trace, so that a long trace replays in minutes. Requests
come one at a time. What enters the state pool is SGLang 0.5.23's own choice under
``extra_buffer``: a state at the end of every prefill chunk (or at the branch point inside it), at
the end of the prompt, and at the last decode interval.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from cpu_cache import CpuCache
from sglang.srt.managers.schedule_batch import ReqKvInfo
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from traces import Request

#: Tokens: ``--chunked-prefill-size`` and ``--mamba-track-interval`` of the simulated server.
CHUNK_TOKENS, TRACK_TOKENS = 8192, 256
#: State slots that a running request holds under ``extra_buffer``.
WORKING_STATES = 3


@dataclass(frozen=True)
class BlockCost:
    """A model's cost where the unit of length is a block of ``block_tokens`` tokens."""

    model: ModelCost
    block_tokens: int

    @property
    def kv_bytes_per_token(self) -> float:
        return self.model.kv_bytes_per_token * self.block_tokens

    @property
    def state_bytes(self) -> float:
        return self.model.state_bytes

    def flops(self, start: int, end: int) -> float:
        return self.model.flops(start * self.block_tokens, end * self.block_tokens)


@dataclass
class Served:
    """What one request found; in tokens."""

    input_tokens: int
    hit_tokens: int
    served: bool = True


class Replay:
    """Feeds requests to one cache; every slot taken is given back or owned by the tree."""

    def __init__(self, cache: CpuCache, block_tokens: int) -> None:
        self.cache = cache
        self.block_tokens = block_tokens
        self._fresh: Iterator[int] = itertools.count(1 << 40)

    def serve(self, request: Request) -> Served:
        """Serve one request; one that does not fit into an empty cache is not served."""
        # The last token of a prompt is always computed, so its block cannot hit.
        whole = (request.input_length - 1) // self.block_tokens
        prompt = list(request.prompt_ids[: request.input_length // self.block_tokens])
        result, lookup = self._match(prompt[:whole], request)
        hit = int(result.device_prefix_len)
        served = Served(request.input_length, hit * self.block_tokens)
        run = _Run(self.cache, result)
        try:
            self._prefill(run, prompt, result.mamba_branching_seqlen)
            self._decode(run, prompt, request)
        except _OutOfMemory:
            served.served = False
        finally:
            run.release()
        if lookup is not None and served.served:
            self.cache.cache.count_request(lookup)
        return served

    def _match(self, tokens: list[int], request: Request) -> tuple[Any, Any]:
        if not hasattr(self.cache.cache, "marconi_state"):
            return self.cache.match(tokens), None
        blocks = range(-(-request.input_length // self.block_tokens))
        lookup = SimpleNamespace(kv=ReqKvInfo(), rid="", session=None, origin_input_ids=blocks)
        return self.cache.match(tokens, req=lookup), lookup

    def _prefill(self, run: _Run, prompt: list[int], branch: int | None) -> None:
        chunk = max(CHUNK_TOKENS // self.block_tokens, 1)
        for end in (*range(run.depth + chunk, len(prompt), chunk), len(prompt)):
            if branch is not None and run.depth < branch < end:
                run.extend(prompt[:branch])
                run.compute(prompt[:end])
            else:
                run.extend(prompt[:end])

    def _decode(self, run: _Run, prompt: list[int], request: Request) -> None:
        total = request.input_length + request.output_length
        count = total // self.block_tokens - len(prompt)
        output = list(request.output_ids[:count])
        output += itertools.islice(self._fresh, max(count - len(output), 0))
        run.compute(prompt + output)
        step = max(TRACK_TOKENS // self.block_tokens, 1)
        tracked = len(prompt + output) // step * step
        if tracked > len(prompt):
            run.extend((prompt + output)[:tracked])


class _OutOfMemory(Exception):
    """Nothing evictable is left: a scheduler would let the request wait."""


class _Run:
    """One running request: its lock, its working states, its KV that the tree does not own yet."""

    def __init__(self, cache: CpuCache, matched: Any) -> None:
        self._cache = cache
        self.depth = int(matched.device_prefix_len)
        self._node = matched.last_device_node
        self._lock = cache.cache.lock(self._node)
        self._kv = torch.empty(0, dtype=torch.int64)
        self._states: list[torch.Tensor] = []
        self._started = False

    def compute(self, tokens: list[int]) -> None:
        """Hold KV for all of ``tokens``, and working states."""
        while len(self._states) < WORKING_STATES:
            state = self._cache.alloc_state()
            if state is None:
                raise _OutOfMemory
            self._states.append(state)
        missing = len(tokens) - self.depth - len(self._kv)
        if missing > 0:
            fresh = self._cache.alloc_kv(missing)
            if fresh is None:
                raise _OutOfMemory
            self._kv = torch.cat([self._kv, fresh])

    def extend(self, tokens: list[int]) -> None:
        """Compute ``tokens`` and give them to the tree with a state at their end."""
        if len(tokens) <= self.depth:
            return
        self.compute(tokens)
        state = self._cache.alloc_state()
        if state is None:
            raise _OutOfMemory
        cache = self._cache.cache
        given = len(tokens) - self.depth
        held = cache.path_device_indices(self._node)[: self.depth]
        result = cache.insert(
            InsertParams(
                key=self._cache.key(tokens),
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
        self.depth = len(tokens)

    def release(self) -> None:
        """Give back everything that the tree does not own."""
        self._cache.cache.unlock(self._lock)
        if len(self._kv):
            self._cache.allocator.free(self._kv)
        for state in self._states:
            self._cache.requests.mamba_allocator.free(state)
