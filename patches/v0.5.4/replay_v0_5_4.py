"""Serves requests from a 0.5.4 cache over CPU pools, as that release's scheduler would, one by one.

A request holds one working state. Its prompt is prefilled in chunks; at the end of each, a copy of
the state enters the tree, and when the request ends, the working state itself does. There is no
state at a branch point in this release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from cpu_cache_v0_5_4 import CpuCache, Match


@dataclass
class Served:
    """What one request found, in pool slots (tokens, or blocks of a trace that is cut in blocks).

    Attributes:
        hit: slots that needed no prefill.
        kv_alive: leading slots whose KV was cached, with or without a state behind them.
        served: ``False`` where it did not fit into the memory that could be freed.
        computed: leading slots whose KV there was at the end.
        states: depths at which the request gave a state to the tree.
    """

    hit: int
    kv_alive: int
    served: bool = True
    computed: int = 0
    states: list[int] = field(default_factory=list)


def serve(
    cache: CpuCache,
    prompt: Sequence[int],
    output: Sequence[int],
    chunk: int = 8192,
    matchable: int | None = None,
) -> Served:
    """Serve one request; every slot that it took is given back or owned by the tree afterwards.

    Args:
        prompt: ids of the prompt's slots.
        output: ids of the slots whose KV decoding fills; the last token of a reply has none.
        chunk: slots that one prefill step computes, as ``--chunked-prefill-size``.
        matchable: leading slots of the prompt that may hit; by default all but the last, which is
            always computed, so that there is something to sample from.
    """
    tokens = [*prompt, *output]
    sought = tokens[: len(prompt) - 1 if matchable is None else matchable]
    lookup = SimpleNamespace(origin_input_ids=prompt)
    found = cache.match(sought, req=lookup)
    served = Served(found.device_prefix_len, cache.kv_alive(sought))
    run = _Request(cache, tokens, found)
    try:
        run.start()
        for end in (*range(served.hit + chunk, len(prompt), chunk), len(prompt)):
            run.compute(end)
            run.give_copy(end)
            served.states.append(end)
            if hasattr(cache.cache, "count_request"):
                cache.cache.count_request(lookup)
        for end in range(len(prompt), len(tokens)):
            run.compute(end + 1)
        run.give_working()
        served.states.append(len(tokens))
    except _OutOfMemory:
        served.served = False
    served.computed = run.computed
    run.close()
    return served


class _OutOfMemory(Exception):
    """Nothing evictable is left."""


class _Request:
    """A running request: its lock, its working state, the KV that the tree does not own yet."""

    def __init__(self, cache: CpuCache, tokens: list[int], found: Match) -> None:
        self._cache, self._tokens = cache, tokens
        self._held, self._fresh = found.device_indices, torch.empty(0, dtype=torch.int64)
        self._lock = cache.lock(found.last_device_node)
        self._working: torch.Tensor | None = None

    @property
    def computed(self) -> int:
        return len(self._held) + len(self._fresh)

    def start(self) -> None:
        self._working = self._new_state()

    def compute(self, end: int) -> None:
        """Take the KV slots up to ``end``."""
        slots = self._cache.alloc_kv(end - self.computed)
        if slots is None:
            raise _OutOfMemory
        self._fresh = torch.cat([self._fresh, slots])

    def give_copy(self, end: int) -> None:
        """Give the tree what was computed, with a copy of the working state."""
        if not end:
            return
        copy = self._new_state()
        self._cache.requests.mamba_pool.copy_from(self._working, copy)
        self._cache.commit(self._tokens[:end], self._held, self._fresh, copy)
        found = self._cache.match(self._tokens[:end])
        self._cache.unlock(self._lock)
        self._lock = self._cache.lock(found.last_device_node)
        self._held, self._fresh = found.device_indices, self._fresh[:0]

    def give_working(self) -> None:
        """Give the tree all of it, with the working state itself."""
        if self._tokens and self._working is not None:
            self._cache.commit(self._tokens, self._held, self._fresh, self._working)
            self._held = torch.cat([self._held, self._fresh])
            self._fresh, self._working = self._fresh[:0], None

    def close(self) -> None:
        """Give back what the tree does not own."""
        self._cache.unlock(self._lock)
        self._cache.allocator.free(self._fresh)
        if self._working is not None:
            self._cache.free_state(self._working)

    def _new_state(self) -> torch.Tensor:
        state = self._cache.alloc_state()
        if state is None:
            raise _OutOfMemory
        return state
