"""A server under load: requests wait, are looked up while they wait, and run beside each other.

A discrete-event simulation in the manner of SGLang 0.5.23's scheduler, over any simulated cache.
When the machine is free, a pass sorts the queue and admits from its head while fewer than
``running`` run, what all of them still need can be found free or evictable, and the chunk has room,
which may cut a prompt anywhere; what is admitted is one prefill batch. While there is nothing to
prefill, all that run decode step by step, together. A request holds its lock, its working states
and its own KV until its last token. After a request that did not fit nobody is admitted until
another has ended.

Simplified: nobody is preempted, the KV of the output is taken when decoding begins, and a step
takes as long for many requests as for one. What comes from the host is copied before its batch
is computed, where a server computes the first layers meanwhile. A server tries the request that did
not fit once more after each chunk of a long prompt, and under shortest-prefill-first it leaves room
beside a long prompt for shorter ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Protocol

from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.marconi.advice.load.arrivals import Arrival, Arrivals
from sglang.srt.mem_cache.marconi.advice.load.schedules import (
    MOST_MATCHED,
    TOUCH_INTERVAL,
    Schedule,
    Waiting,
)
from sglang.srt.mem_cache.marconi.advice.load.served import (
    CHUNK_TOKENS,
    OutOfMemory,
    Served,
)
from sglang.srt.mem_cache.marconi.advice.load.service import ServiceTimes


class Run(Protocol):
    """A request that was matched and holds its path locked; lengths in blocks.

    ``next_chunk`` and ``finish_chunk`` alternate until ``prompt_left`` is 0, then comes ``decode``;
    ``finish`` or ``cancel`` ends it at any point.
    """

    served: Served

    @property
    def prompt_left(self) -> int:
        """Of its prompt, yet to be prefilled."""

    @property
    def has_chunks(self) -> bool:
        """Some of the prompt is still to be prefilled, a part of a block maybe."""

    def admit(self) -> None:
        """It is served: what it resumes at is used."""

    def next_chunk(self, limit: int) -> tuple[int, int] | None:
        """Allocate what the next prefill of at most ``limit`` blocks needs.

        Returns:
            The tokens that it computes, from and to; ``None`` after the last.

        Raises:
            OutOfMemory: nothing evictable is left.
        """

    def finish_chunk(self) -> None:
        """The chunk was computed."""

    def decode(self) -> None:
        """Hold KV for the whole output.

        Raises:
            OutOfMemory: nothing evictable is left.
        """

    def finish(self) -> None:
        """It ended: what it leaves goes to the tree, the rest back."""

    def cancel(self) -> None:
        """Give back what the tree does not own, as if it had not come."""


class LoadedCache(Protocol):
    """A cache that many requests ask."""

    @property
    def matches_all(self) -> bool:
        """SGLang looks all waiting requests up in each pass, whatever the order of service."""

    def look(self, waiting: Waiting) -> int:
        """Tokens of a waiting request's prompt that are cached; no use, but LRU is touched."""

    def note_queue(self, queue: Sequence[Waiting], *, matched: bool) -> None:
        """The queue was sorted; ``matched``: all of it was looked up before."""

    def begin(self, arrival: Arrival) -> Run:
        """Match a request and lock what it found."""

    def fits(self, runs: Sequence[Run]) -> bool:
        """All that these still need is free or evictable."""


class Scheduler:
    """Serves arrivals with up to ``running`` requests at a time; all times in seconds.

    Args:
        chunk_tokens: as ``--chunked-prefill-size``.
        passes: that found somebody waiting, before.
    """

    def __init__(
        self,
        cache: LoadedCache,
        cost: ModelCost,
        service: ServiceTimes,
        *,
        running: int,
        schedule: Schedule,
        block: int,
        chunk_tokens: int = CHUNK_TOKENS,
        passes: int = 0,
    ) -> None:
        self.now = 0.0
        self._copied: dict[Run, float] = {}
        self._copying = 0.0
        self._cache, self._cost, self._service = cache, cost, service
        self._most, self._schedule, self._block = running, schedule, block
        self._chunk = max(chunk_tokens // block, 1)
        # When what the machine does ends, and what is done then.
        self._busy: tuple[float, Callable[[], None]] | None = None
        self._steps_from: float | None = None
        self._tokens_left: dict[Run, int] = {}
        self._waiting: list[Waiting] = []
        self._running: dict[Run, Waiting] = {}
        self._unfinished: list[Run] = []
        self._done: list[tuple[Arrival, Served]] = []
        self._full = False
        self._passes, self._prefilled = passes, 0

    @property
    def running(self) -> int:
        """Requests that hold locks and working states now."""
        return len(self._running)

    def serve(self, arrivals: Arrivals) -> Iterator[Served]:
        """Every request once, in the order in which they end."""
        while (now := self._next_at(arrivals)) is not None:
            self.now = now
            if self._busy is not None and self._busy[0] <= now:
                _, ended = self._busy
                self._busy = None
                ended()
            # Whoever is answered now cannot have sent the next request before the next pass.
            self._go_on()
            while (due := arrivals.next_at()) is not None and due <= now:
                arrival = arrivals.come(now)
                if arrival is not None:
                    self._waiting.append(Waiting(arrival, now, self._prefilled))
            self._go_on()
            done, self._done = self._done, []
            for arrival, served in done:
                arrivals.ended(arrival, now)
                yield served

    def _next_at(self, arrivals: Arrivals) -> float | None:
        due = arrivals.next_at()
        if self._busy is None:
            return due
        return self._busy[0] if due is None else min(self._busy[0], due)

    def _go_on(self) -> None:
        """Let the machine prefill if it can, and else decode."""
        if self._steps_from is not None and self._may_admit():
            self._stop_after_this_step(self._steps_from)
        while self._busy is None and self._schedule_batch():
            pass
        if self._busy is None and self._tokens_left:
            self._steps_from = self.now
            self._decode(self.now, min(self._tokens_left.values()))

    # -- decoding

    def _decode(self, begun: float, steps: int) -> None:
        seconds = steps * self._service.decode_seconds_per_token
        self._busy = begun + seconds, lambda: self._end_steps(steps)

    def _stop_after_this_step(self, begun: float) -> None:
        assert self._busy is not None
        step = self._service.decode_seconds_per_token
        steps = ceil((self.now - begun) / step) if step else 0
        if begun + steps * step < self._busy[0]:
            self._decode(begun, steps)

    def _end_steps(self, steps: int) -> None:
        self._steps_from = None
        for run in list(self._tokens_left):
            self._tokens_left[run] -= steps
            if self._tokens_left[run] <= 0:
                del self._tokens_left[run]
                self._close(run)

    # -- a pass

    def _may_admit(self) -> bool:
        return bool(self._waiting) and not self._full and self.running < self._most

    def _schedule_batch(self) -> bool:
        """Start a prefill batch; whether there was anything to do."""
        batch: list[tuple[Run, int]] = []
        left = self._chunk
        for run in self._unfinished:
            batch.append((run, left))
            left -= min(left, run.prompt_left)
        given_up = 0
        if self._unfinished or self._may_admit():
            self._look_at_queue()
            given_up = self._admit(batch, left)
        self._prefill(batch)
        return bool(batch or given_up)

    def _look_at_queue(self) -> None:
        queue, schedule = self._waiting, self._schedule.active(len(self._waiting))
        matched = schedule.matches or self._cache.matches_all
        if matched:
            for one in queue:
                one.matched = self._cache.look(one)
        schedule.sort(queue, self._prefilled, self._block)
        if queue and not matched:
            if self._passes % TOUCH_INTERVAL == 0:
                # The head last, so that LRU keeps it longest.
                for one in reversed(queue[:MOST_MATCHED]):
                    self._cache.look(one)
            self._passes += 1
        self._cache.note_queue(queue, matched=matched)

    def _admit(self, batch: list[tuple[Run, int]], left: int) -> int:
        """Add to a batch from the head of the queue.

        Returns:
            Requests that do not fit even alone.
        """
        given_up = 0
        while left and self._may_admit():
            first = self._waiting[0]
            run = self._cache.begin(first.arrival)
            fits = self._cache.fits([run, *self._running])
            if not fits and self._running:
                run.cancel()
                self._full = True
                break
            del self._waiting[0]
            self._running[run] = first
            if not fits:
                self._give_up(run)
                given_up += 1
                continue
            run.admit()
            run.served.wait_seconds = self.now - first.since
            batch.append((run, left))
            left -= min(left, run.prompt_left)
        return given_up

    # -- what runs

    def _prefill(self, batch: list[tuple[Run, int]]) -> None:
        computing, flops = [], 0.0
        self._unfinished = []
        for run, limit in batch:
            try:
                chunk = run.next_chunk(limit)
            except OutOfMemory:
                self._give_up(run)
                continue
            assert chunk is not None
            flops += self._cost.flops(*chunk)
            self._prefilled += chunk[1] - chunk[0]
            self._note_copies(run)
            computing.append(run)
        if computing:
            seconds = self._service.batch_seconds + flops / self._service.prefill_flops_per_second
            seconds += self._copying
            self._copying = 0.0
            self._busy = self.now + seconds, lambda: self._end_batch(computing)

    def _end_batch(self, computing: list[Run]) -> None:
        for run in computing:
            run.finish_chunk()
            if run.has_chunks:
                self._unfinished.append(run)
                continue
            run.served.ttft_seconds = self.now - self._running[run].since
            try:
                run.decode()
            except OutOfMemory:
                self._give_up(run)
                continue
            # The first token comes of the prefill.
            left = self._running[run].arrival.request.output_length - 1
            if left > 0:
                self._tokens_left[run] = left
            else:
                self._close(run)

    def _note_copies(self, run: Run) -> None:
        """What ``run`` waited for copies since it was last asked, the next batch takes longer."""
        copied = run.served.copy_seconds
        self._copying += copied - self._copied.get(run, 0.0)
        self._copied[run] = copied

    def _give_up(self, run: Run) -> None:
        run.served.served = False
        self._close(run)

    def _close(self, run: Run) -> None:
        waiting = self._running.pop(run)
        self._full = False
        run.finish()
        self._note_copies(run)
        del self._copied[run]
        run.served.session = waiting.arrival.session
        run.served.came_seconds, run.served.ended_seconds = waiting.since, self.now
        self._done.append((waiting.arrival, run.served))
