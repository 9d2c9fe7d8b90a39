"""Who sends when: by the trace's clock, or so many sessions that each wait for their answer."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from traces import Request


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that is sent.

    Attributes:
        index: its place in the trace, counted from 0.
        session: whom it belongs to; a request of no session is a session of its own.
        turn: requests of its session before it.
    """

    index: int
    session: str
    turn: int
    request: Request


class Arrivals(Protocol):
    """When requests come. A turn never comes before the turn before it has ended."""

    def next_at(self) -> float | None:
        """Seconds at which the next may come; ``None``: none before another has ended."""

    def come(self, now: float) -> Arrival | None:
        """Who comes at ``next_at``; ``None`` where that one has to wait for its session."""

    def ended(self, arrival: Arrival, now: float) -> None:
        """Its answer is complete, or it was given up."""


class TraceArrivals:
    """The trace's own timestamps. Holds the turns that are due before their session is free.

    Args:
        speed: the trace's clock runs this many times faster.
    """

    def __init__(self, requests: Iterable[Request], speed: float = 1.0) -> None:
        self._requests = _numbered(requests)
        self._speed = speed
        self._upcoming = next(self._requests, None)
        self._held: dict[str, deque[Arrival]] = {}
        self._free: list[tuple[float, int, Arrival]] = []
        self._now = 0.0

    def next_at(self) -> float | None:
        times = [self._free[0][0]] if self._free else []
        if self._upcoming is not None:
            times.append(max(self._upcoming.request.timestamp_ms / 1000 / self._speed, self._now))
        return min(times, default=None)

    def come(self, now: float) -> Arrival | None:
        self._now = now
        if self._free and self._free[0][0] <= now:
            return heapq.heappop(self._free)[2]
        arrival = self._upcoming
        assert arrival is not None
        self._upcoming = next(self._requests, None)
        if arrival.session in self._held:
            self._held[arrival.session].append(arrival)
            return None
        self._held[arrival.session] = deque()
        return arrival

    def ended(self, arrival: Arrival, now: float) -> None:
        held = self._held[arrival.session]
        if held:
            following = held.popleft()
            heapq.heappush(self._free, (now, following.index, following))
        else:
            del self._held[arrival.session]


class ClosedArrivals:
    """A closed loop: each of ``active`` sessions sends a think time after its last answer.

    A session that is over is followed by the next of the trace, in the order in which they first
    appear. Think times are exponential and belong to the turn, so that they are the same whatever
    is served before. Holds the whole trace.

    Args:
        think: mean, in seconds.
    """

    def __init__(
        self, requests: Iterable[Request], active: int, think: float = 0.0, seed: int = 0
    ) -> None:
        self._sessions: dict[str, deque[Arrival]] = {}
        for arrival in _numbered(requests):
            self._sessions.setdefault(arrival.session, deque()).append(arrival)
        self._waiting = deque(self._sessions)
        self._think, self._seed = think, seed
        self._due: list[tuple[float, int, Arrival]] = []
        self._sent = 0
        for _ in range(min(active, len(self._waiting))):
            self._send(self._waiting.popleft(), 0.0)

    def next_at(self) -> float | None:
        return self._due[0][0] if self._due else None

    def come(self, now: float) -> Arrival | None:
        return heapq.heappop(self._due)[2]

    def ended(self, arrival: Arrival, now: float) -> None:
        at = now + self._thought(arrival)
        if self._sessions[arrival.session]:
            self._send(arrival.session, at)
        elif self._waiting:
            self._send(self._waiting.popleft(), at)

    def _send(self, session: str, at: float) -> None:
        heapq.heappush(self._due, (at, self._sent, self._sessions[session].popleft()))
        self._sent += 1

    def _thought(self, arrival: Arrival) -> float:
        draw = random.Random(f"{self._seed}/{arrival.index}").expovariate(1)
        return draw * self._think


def _numbered(requests: Iterable[Request]) -> Iterator[Arrival]:
    turns: dict[str, int] = {}
    for index, request in enumerate(requests):
        if request.session is None:
            yield Arrival(index, f"request {index}", 0, request)
            continue
        turn = turns.get(request.session, 0)
        turns[request.session] = turn + 1
        yield Arrival(index, request.session, turn, request)
