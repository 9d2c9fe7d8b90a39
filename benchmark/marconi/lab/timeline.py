"""Requests that overlap: arrivals by the trace's clock, service times from a model's FLOPs.

A discrete-event simulation in the manner of SGLang's scheduler. Requests wait in one queue, in
order of arrival; the first starts when fewer than ``concurrency`` run and what it still needs (its
uncached prompt, its output, its working states) can be found free or evictable. Prefill is one
server that computes one chunk after the other; decoding requests run beside it at a fixed pace. A
request holds its lock, its working states and its own KV until its last token. A turn of a session
does not arrive before the turn before it has ended. Simplified: nobody is preempted, the KV of the
output is taken when decoding begins, and decoding does not slow prefill.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from replay_cache import OutOfMemory, Replay, RequestRun
from sglang.srt.marconi_utils import ModelCost
from traces import Request

from lab.served import Served
from lab.service import ServiceTimes


@dataclass(frozen=True)
class _Arrival:
    index: int
    request: Request
    seconds: float


class Timeline:
    """Serves a trace with up to ``concurrency`` requests at a time; all times in seconds."""

    def __init__(
        self, replay: Replay, cost: ModelCost, service: ServiceTimes, concurrency: int
    ) -> None:
        self.now = 0.0
        self._replay, self._cost, self._service = replay, cost, service
        self._concurrency = concurrency
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._waiting: deque[_Arrival] = deque()
        self._prefilling: deque[tuple[RequestRun, float]] = deque()
        self._running: list[RequestRun] = []
        self._busy = False
        self._turns: dict[str, deque[tuple[int, Request]]] = {}
        self._done: list[Served] = []

    @property
    def running(self) -> int:
        """Requests that hold locks and working states now."""
        return len(self._running)

    def serve(self, requests: Iterable[Request]) -> Iterator[Served]:
        """Every request once, in the order in which they end."""
        arrivals = enumerate(requests)
        upcoming = next(arrivals, None)
        while upcoming is not None or self._events:
            due = None if upcoming is None else self._due(upcoming[1])
            if due is not None and (not self._events or due <= self._events[0][0]):
                assert upcoming is not None
                self.now = due
                self._arrive(*upcoming)
                upcoming = next(arrivals, None)
            else:
                self.now, _, event = heapq.heappop(self._events)
                event()
            self._start_waiting()
            self._prefill()
            yield from self._done
            self._done.clear()

    def _due(self, request: Request) -> float:
        return max(request.timestamp_ms / 1000 / self._service.speed, self.now)

    def _arrive(self, index: int, request: Request) -> None:
        if request.session is not None:
            if request.session in self._turns:
                self._turns[request.session].append((index, request))
                return
            self._turns[request.session] = deque()
        self._waiting.append(_Arrival(index, request, self.now))

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._sequence), event))

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < self._concurrency:
            first = self._waiting[0]
            run = self._replay.begin(first.request, first.index)
            if self._fits(run):
                self._running.append(run)
                self._prefilling.append((run, first.seconds))
            elif self._running:
                run.cancel()
                return
            else:
                self._give_up(run)
            self._waiting.popleft()

    def _fits(self, run: RequestRun) -> bool:
        pools, cache = self._replay.cache, self._replay.cache.cache
        everyone = [run, *self._running]
        kv = pools.allocator.available_size() + cache.full_evictable_size()
        states = pools.requests.mamba_allocator.available_size() + cache.mamba_evictable_size()
        # Beside its working states a request needs one for what it gives to the tree.
        return bool(
            sum(other.kv_missing for other in everyone) <= kv
            and sum(other.states_missing + 1 for other in everyone) <= states
        )

    def _prefill(self) -> None:
        while self._prefilling and not self._busy:
            run, _ = self._prefilling[0]
            try:
                chunk = run.next_chunk()
            except OutOfMemory:
                self._prefilling.popleft()
                self._running.remove(run)
                self._give_up(run)
                continue
            assert chunk is not None
            flops = self._cost.flops(*chunk)
            self._busy = True
            self._after(flops / self._service.prefill_flops_per_second, self._end_chunk)

    def _end_chunk(self) -> None:
        self._busy = False
        run, arrived = self._prefilling[0]
        run.finish_chunk()
        if run.has_chunks:
            return
        self._prefilling.popleft()
        run.served.ttft_seconds = self.now - arrived
        try:
            run.decode()
        except OutOfMemory:
            self._running.remove(run)
            self._give_up(run)
            return
        seconds = run.request.output_length * self._service.decode_seconds_per_token
        self._after(seconds, lambda: self._end(run))

    def _end(self, run: RequestRun) -> None:
        self._running.remove(run)
        self._close(run)

    def _give_up(self, run: RequestRun) -> None:
        run.served.served = False
        self._close(run)

    def _close(self, run: RequestRun) -> None:
        run.finish()
        self._done.append(run.served)
        if run.request.session is None:
            return
        turns = self._turns[run.request.session]
        if turns:
            self._waiting.append(_Arrival(*turns.popleft(), self.now))
        else:
            del self._turns[run.request.session]
