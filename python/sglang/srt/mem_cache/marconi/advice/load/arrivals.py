"""Who sends when: requests at recorded times, each session's one after the other."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class Sent(Protocol):
    """What the order of service, and its time, depend on; lengths in tokens.

    ``prompt_ids`` has one id for each full block of the prompt.
    """

    @property
    def timestamp_ms(self) -> float: ...

    @property
    def session(self) -> str | None: ...

    @property
    def input_length(self) -> int: ...

    @property
    def output_length(self) -> int: ...

    @property
    def prompt_ids(self) -> Sequence[int]: ...


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
    request: Sent


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

    def __init__(self, requests: Iterable[Sent], speed: float = 1.0) -> None:
        self._requests = numbered(requests)
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


def numbered(requests: Iterable[Sent]) -> Iterator[Arrival]:
    """Requests with their places in the trace and in their sessions."""
    turns: dict[str, int] = {}
    for index, request in enumerate(requests):
        if request.session is None:
            yield Arrival(index, f"request {index}", 0, request)
            continue
        turn = turns.get(request.session, 0)
        turns[request.session] = turn + 1
        yield Arrival(index, request.session, turn, request)
