"""What a scheduler asks of a cache, with SGLang's own requests and pools, and no model between."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import torch
from lab.cpu_cache import CpuCache
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.marconi.tuning.weights import EFF_WEIGHTS
from sglang.srt.sampling.sampling_params import SamplingParams

from gpu.meters import Meter

#: Pools, in tokens and states: small, so that nearly every request evicts.
KV_TOKENS, STATES = 8192, 24
#: Tokens: longest prompt, longest prefill of one forward, and those generated.
LONGEST, CHUNK, GENERATED = 1536, 512, 16
CONVERSATIONS = 8


def lived(
    arguments: dict[str, Any],
    device: torch.device,
    meter: Meter,
    seed: int,
    requests: int,
    record: Path,
) -> list[str]:
    """One life of a new cache.

    Args:
        arguments: of the cache.
        record: where a cache that tunes records its requests.

    Returns:
        What ours caught and went on from; nothing on a sound cache.
    """
    options = dict(arguments.get("options", {}))
    if arguments.get("tunes"):
        options["marconi_record"] = str(record)
    pools = {"kv_tokens": KV_TOKENS, "state_slots": STATES, "context_tokens": LONGEST + GENERATED}
    cache = CpuCache(**{**arguments, **pools, "options": options}, device=str(device))
    life, caught = Life(cache, meter, seed), list[str]()
    ours: Any = cache.cache if isinstance(cache.cache, MambaRadixCache) else None
    if ours is None:
        life.run(requests)
        return caught

    def count_fallback(pool: Pool, error: Exception) -> None:
        if ours.view.is_sound:
            caught.append(repr(error))

    ours.count_fallback = count_fallback
    ours.count_error = lambda what, error, instead: caught.append(f"{what}: {error!r}")
    try:
        life.run(requests)
    finally:
        if ours.tuning is not None:
            ours.tuning.controller.tuner.stop()
    return caught


class Life:
    """Requests of a few conversations, two at a time, on one cache.

    The same seed asks the same of every cache; what must be evicted depends on its policy.
    """

    def __init__(self, cache: CpuCache, meter: Meter, seed: int) -> None:
        self._cache = cache
        self._measured = meter.measured
        self._rng = random.Random(seed)
        self._running: list[Req] = []

    def run(self, requests: int) -> None:
        """Serve so many requests, lose an event of the tree half-way, and flush at the end."""
        turns = [self._tokens(64) for _ in range(CONVERSATIONS)]
        for number in range(requests):
            which = self._rng.randrange(CONVERSATIONS)
            if len(turns[which]) > LONGEST - 320:
                turns[which] = turns[which][: self._rng.randrange(64, 512)]
            turns[which] += self._tokens(self._rng.randrange(16, 320))
            self._running.append(self._start(f"{number}", turns[which]))
            if len(self._running) > 1:
                self._end(self._running.pop(0))
            if number == requests // 4:
                self._adopt()
            if number == requests // 2:
                self._lose_an_event()
            if number % 8 == 7:
                self._evict("evict KV", EvictParams(num_tokens=128))
                self._evict("evict states", EvictParams(num_tokens=0, mamba_num=2))
        while self._running:
            self._end(self._running.pop())
        self._ask_ours()
        with self._measured("flush"):
            self._cache.cache.reset()

    def _tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(1 << 20) for _ in range(count)]

    # -- one request

    def _start(self, name: str, tokens: list[int]) -> Req:
        cache = self._cache.cache
        req = Req(name, "", array("q", tokens), SamplingParams(max_new_tokens=GENERATED))
        with self._measured("match"):
            req.init_next_round_input(cache)
        with self._measured("lock"):
            req.lock = cache.lock(req.last_node)
        if not req.kv.holds_mamba:
            self._make_room_for_states(1)
        assert self._cache.requests.alloc([req]) is not None
        for start in range(req.prefix_len, len(tokens), CHUNK):
            self._compute(req, start, min(start + CHUNK, len(tokens)))
            with self._measured("insert a chunk"):
                cache.checkpoint(req, up_to=req.kv.kv_committed_len)
        return req

    def _end(self, req: Req) -> None:
        cache = self._cache.cache
        is_retracted = self._rng.random() < 0.1
        if not is_retracted:
            self._compute(req, req.kv.kv_committed_len, req.kv.kv_committed_len + GENERATED)
            req.output_ids.extend(self._tokens(GENERATED))
            req.refresh_fill_ids()
            req.finished_reason = FINISH_LENGTH(GENERATED)
            with self._measured("insert the end"):
                cache.checkpoint(req, up_to=req.kv.kv_committed_len)
        cache.free_kv_row(req.kv, [(req.kv.cache_protected_len, req.kv.kv_committed_len)])
        with self._measured("unlock"):
            cache.unlock(req.lock)
        with self._measured("release"):
            cache.on_release(req, checkpointed=not is_retracted)
        self._cache.requests.free(req)

    def _compute(self, req: Req, start: int, end: int) -> None:
        """Find KV for tokens ``start..end-1``; SGLang finds a state itself when it inserts."""
        missing = end - start - self._cache.allocator.available_size()
        if missing > 0:
            self._evict("evict KV", EvictParams(num_tokens=missing))
        slots = self._cache.allocator.alloc(end - start)
        assert slots is not None, "locked requests leave too little memory"
        self._cache.requests.write((req.kv.req_pool_idx, slice(start, end)), slots)
        req.kv.kv_committed_len = req.kv.kv_allocated_len = end
        self._cache.cache.maybe_hand_to_session(req)

    def _make_room_for_states(self, count: int) -> None:
        missing = count - self._cache.requests.mamba_allocator.schedulable_available_size()
        if missing > 0:
            self._evict("evict states", EvictParams(num_tokens=0, mamba_num=missing))

    def _evict(self, operation: str, params: EvictParams) -> None:
        with self._measured(operation):
            self._cache.cache.evict_for_alloc(params)

    # -- what stock has no counterpart for

    def _lose_an_event(self) -> None:
        """LRU decides from here, until a request that lets go finds the view to be built anew."""
        view = getattr(self._cache.cache, "view", None)
        if view is not None:
            view.is_sound = False
        self._evict("evict, view lost", EvictParams(num_tokens=64))
        self._evict("evict, view lost", EvictParams(num_tokens=0, mamba_num=1))

    def _ask_ours(self) -> None:
        cache = self._cache.cache
        if not hasattr(cache, "marconi_state"):
            return
        with self._measured("counters"):
            cache.marconi_state()

    def _adopt(self) -> None:
        """Put weights in force as the tuner does; the last stays."""
        tuning = getattr(self._cache.cache, "tuning", None)
        if tuning is not None:
            for weight in EFF_WEIGHTS:
                with self._measured("adopt a weight"):
                    self._cache.cache.adopt(weight)
