"""When the requests of sessions arrive: the paper's arrival processes, at one rate or two."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from traces.request import Request

#: English text has about four tokens for three words.
WORDS_PER_TOKEN = 0.75


@dataclass(frozen=True)
class Timing:
    """Arrival processes for traces that have no times of their own.

    Attributes:
        sessions_per_second: sessions start as a Poisson process of this rate.
        quiet_sessions_per_second: rate of every second block of sessions; ``None``: one rate.
        shift_after: sessions of a block.
        words_per_minute: how fast a user types the next message.
        response_seconds: mean of the exponential time from a request to its complete answer (in
            an agent's session, its tool's work included).
        seed: fixes every draw.

    Raises:
        ValueError: a rate is not above 0, no session is before a change, or the mean is below 0.
    """

    sessions_per_second: float = 1.0
    quiet_sessions_per_second: float | None = None
    shift_after: int = 200
    words_per_minute: float = 90.0
    response_seconds: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sessions_per_second > 0:
            raise ValueError(f"sessions per second are {self.sessions_per_second}; allowed: > 0")
        quiet = self.quiet_sessions_per_second
        if quiet is not None and not quiet > 0:
            raise ValueError(f"quiet sessions per second are {quiet}; allowed: > 0")
        if self.shift_after < 1:
            raise ValueError(f"the rate changes after {self.shift_after} sessions; allowed: >= 1")
        if not self.words_per_minute > 0:
            raise ValueError(f"words per minute are {self.words_per_minute}; allowed: > 0")
        if not self.response_seconds >= 0:
            raise ValueError(f"mean response time is {self.response_seconds} s; allowed: >= 0")

    def starts_ms(self) -> Iterator[float]:
        """Start of each session, without end."""
        rng = random.Random(f"{self.seed}/starts")
        rates = (self.sessions_per_second, self.quiet_sessions_per_second)
        clock = 0.0
        for number in itertools.count():
            rate = rates[number // self.shift_after % 2] or self.sessions_per_second
            clock += rng.expovariate(rate) * 1000
            yield clock

    def typing_ms(self, words: float) -> float:
        """Time to type a message."""
        return words * 60_000 / self.words_per_minute

    def response_ms(self, rng: random.Random) -> float:
        """Time until an answer is complete."""
        return rng.expovariate(1) * self.response_seconds * 1000

    def session_rng(self, name: object) -> random.Random:
        """The draws of one session, which do not depend on any other session."""
        return random.Random(f"{self.seed}/session/{name}")


def interleave(sessions: Iterable[Iterable[Request]], timing: Timing) -> Iterator[Request]:
    """All requests in the order in which they arrive, as sessions start by ``timing``.

    Timestamps within a session count from its start. Holds the sessions that have begun and not
    ended, at the next request of each.
    """
    running: list[tuple[float, int, Request, float, Iterator[Request]]] = []
    for index, (start, session) in enumerate(zip(timing.starts_ms(), sessions, strict=False)):
        while running and running[0][0] <= start:
            yield _next_of(running)
        _push(running, index, start, iter(session))
    while running:
        yield _next_of(running)


def _next_of(running: list[tuple[float, int, Request, float, Iterator[Request]]]) -> Request:
    _, index, request, start, rest = heapq.heappop(running)
    _push(running, index, start, rest)
    return request


def _push(
    running: list[tuple[float, int, Request, float, Iterator[Request]]],
    index: int,
    start: float,
    rest: Iterator[Request],
) -> None:
    request = next(rest, None)
    if request is not None:
        # Microseconds are exact in the files that are written.
        arrival = round(start + request.timestamp_ms, 3)
        item = (arrival, index, replace(request, timestamp_ms=arrival), start, rest)
        heapq.heappush(running, item)


def in_order(requests: Iterable[tuple[str, Request]], window: int) -> Iterator[tuple[str, Request]]:
    """Requests with their places, by arrival, where none is more than ``window`` places late."""
    held: list[tuple[float, int, str, Request]] = []
    for index, (place, request) in enumerate(requests):
        heapq.heappush(held, (request.timestamp_ms, index, place, request))
        if len(held) > window:
            yield heapq.heappop(held)[2:]
    while held:
        yield heapq.heappop(held)[2:]


def newest_first(requests: Sequence[Request]) -> bool:
    """Whether more of them come before the one before them than after it."""
    steps = [b.timestamp_ms - a.timestamp_ms for a, b in itertools.pairwise(requests)]
    return sum(step < 0 for step in steps) > sum(step > 0 for step in steps)
