"""A closed loop: so many sessions that each wait for their answer."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable

from sglang.srt.mem_cache.marconi.advice.load.arrivals import Arrival, numbered
from traces import Request


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
        for arrival in numbered(requests):
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
