"""A shadow of the cache that many requests ask at a time."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from typing import cast

from sglang.srt.mem_cache.marconi.advice.load.arrivals import Arrival, Sent
from sglang.srt.mem_cache.marconi.advice.load.scheduler import Run
from sglang.srt.mem_cache.marconi.advice.load.schedules import Waiting
from sglang.srt.mem_cache.marconi.advice.load.served import OutOfMemory, Served
from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest
from sglang.srt.mem_cache.marconi.eviction.policy import (
    MOST_WAITING,
    REFRESH_PASSES,
    QueueObserver,
)
from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from sglang.srt.mem_cache.marconi.tuning.hosted_cache import HostedShadowCache
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache
from sglang.srt.mem_cache.marconi.tuning.shadow_node import ShadowNode


class ShadowRun:
    """See :class:`Run`. A prompt enters the tree when all of it is computed.

    Attributes:
        hit: blocks of its prompt that hit.

    Args:
        finish_copies: see :meth:`LoadedShadow.finish_copies`.
    """

    def __init__(
        self,
        cache: ShadowCache,
        block_tokens: int,
        index: int,
        request: HashedRequest,
        finish_copies: Callable[[], float] = float,
    ) -> None:
        self._cache, self._block, self._index = cache, block_tokens, index
        self._finish_copies = finish_copies
        self.request = request
        self._prompt = len(request.prompt_ids)
        # The last token of a prompt is always computed, so its block cannot hit.
        self.whole = (request.input_length - 1) // block_tokens
        tokens = self.whole * cache.shape.block_tokens + 1
        self.hit = cache.match(index, request.prompt_ids, tokens)
        self.served = Served(request.input_length, self.hit * block_tokens, index=index)
        self._computed = self._end = self.hit
        self.has_chunks = True

    @property
    def prompt_left(self) -> int:
        return self._prompt - self._computed

    @property
    def wanted(self) -> tuple[int, int]:
        """What :meth:`ShadowCache.fits` asks."""
        return self._index, self._prompt + len(self.request.output_ids)

    def admit(self) -> None:
        before = self._cache.stands_at(self._index)
        hit = self._cache.admit(self._index)
        self.served.loaded_tokens = (hit - before) * self._block
        if hit != self.hit:
            # The device had no room for what the host has.
            self.hit = self._computed = self._end = hit
            self.served.hit_tokens = hit * self._block
        self._charge_copies()

    def next_chunk(self, limit: int | None = None) -> tuple[int, int] | None:
        if not self.has_chunks:
            return None
        start, self._end = self._computed, self._prompt
        if limit is not None and limit < self.prompt_left:
            self._end = start + limit
        last = self._end == self._prompt
        end = self.request.input_length if last else self._end * self._block
        return start * self._block, end

    def finish_chunk(self) -> None:
        self._computed = self._end
        self.has_chunks = self._computed < self._prompt
        if not self.has_chunks:
            self.served.served = self._cache.prefill(self._index)
            self._charge_copies()

    def decode(self) -> None:
        if not self.served.served:
            raise OutOfMemory

    def finish(self) -> None:
        if not self.served.served:
            self.served.hit_tokens = 0
            self._cache.end(self._index, None)
            return
        self._cache.end(self._index, self.request.output_ids, self.request.hint)
        self._charge_copies()

    def cancel(self) -> None:
        self._cache.end(self._index, None)

    def _charge_copies(self) -> None:
        self.served.copy_seconds += self._finish_copies()


class LoadedShadow:
    """See :class:`LoadedCache`.

    Args:
        block_tokens: tokens a block of the requests' hashes.
        cost: of the model, and
        copy_rate: bytes a second of a copy to and from the host, where there is one.
    """

    def __init__(
        self,
        cache: ShadowCache,
        block_tokens: int,
        cost: CostModel | None = None,
        copy_rate: float = math.inf,
    ) -> None:
        self.cache = cache
        self.block_tokens = block_tokens
        self._cost, self._copy_rate = cost, copy_rate
        self._waited_for = 0.0
        self._passes = 0

    def finish_copies(self) -> float:
        """Seconds that were waited for copies since it was asked last."""
        if not isinstance(self.cache, HostedShadowCache):
            return 0.0
        assert self._cost is not None, "copies are counted in bytes"
        before, self._waited_for = self._waited_for, self.cache.waited_bytes(self._cost)
        return (self._waited_for - before) / self._copy_rate

    @property
    def matches_all(self) -> bool:
        """No tree core of SGLang 0.5.23 is asked for it."""
        return False

    def prompt_hashes(self, request: Sent) -> array[int]:
        """Chained hashes of a prompt's whole blocks."""
        return cast(HashedRequest, request).prompt_ids

    def look(self, waiting: Waiting) -> int:
        request = waiting.arrival.request
        hashes = cast("array[int] | None", waiting.looked_up)
        if hashes is None:
            hashes = waiting.looked_up = self.prompt_hashes(request)
        whole = (request.input_length - 1) // self.block_tokens
        waiting.resumes, _ = self.cache.tree.look(hashes, min(len(hashes), whole))
        return waiting.resumes.end * self.block_tokens

    def note_queue(self, queue: Sequence[Waiting], *, matched: bool) -> None:
        """As :class:`WaitingRequests` does it."""
        policy = self.cache.policy
        if not isinstance(policy, QueueObserver):
            return
        tree, refresh = self.cache.tree, self._passes % REFRESH_PASSES == 0
        self._passes += 1
        ids: list[int | None] = []
        for one in queue[:MOST_WAITING]:
            node = cast("ShadowNode | None", one.resumes)
            if not matched and (refresh or node is None or not self._still_resumes(node)):
                self.look(one)
            ids.append(cast(ShadowNode, one.resumes).id)
        tree.view.refresh(tree.now)
        policy.on_queue(ids, tree.now)

    def _still_resumes(self, node: ShadowNode) -> bool:
        tree = self.cache.tree
        return node is tree.root or (tree.node(node.id) is node and node.survives)

    def begin(self, arrival: Arrival) -> ShadowRun:
        request = cast(HashedRequest, arrival.request)
        return ShadowRun(
            *(self.cache, self.block_tokens, arrival.index, request), self.finish_copies
        )

    def fits(self, runs: Sequence[Run]) -> bool:
        return self.cache.fits([cast(ShadowRun, run).wanted for run in runs])
