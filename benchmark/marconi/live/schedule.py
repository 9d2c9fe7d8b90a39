"""Which request goes out next: in the trace's order, a session's turns one after another."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

from live.workload import Turn


class Backlog:
    """Requests that wait; it keeps no clock of its own.

    A turn is ready when it is due and its session's turn before it was answered. Times are
    seconds from the start of the run.

    Args:
        active: sessions that may have begun and not ended; by default any number.
    """

    def __init__(
        self, turns: Sequence[Turn], due: Sequence[float], active: int | None = None
    ) -> None:
        self._waiting: dict[str, deque[tuple[float, int, Turn]]] = {}
        for turn, when in zip(turns, due, strict=True):
            self._waiting.setdefault(turn.session, deque()).append((when, turn.index, turn))
        heads = [turns[0] for turns in self._waiting.values()]
        self._heads = heads if active is None else heads[:active]
        self._closed = deque() if active is None else deque(heads[active:])
        heapq.heapify(self._heads)
        self._left = len(turns)

    def __len__(self) -> int:
        """Turns that were not taken yet."""
        return self._left

    def take(self, now: float) -> Turn | None:
        """The ready turn that was due first, the trace's order deciding ties; None without one."""
        if not self._heads or self._heads[0][0] > now:
            return None
        turn = heapq.heappop(self._heads)[2]
        self._waiting[turn.session].popleft()
        self._left -= 1
        return turn

    def answered(self, turn: Turn) -> None:
        """``turn`` is over, well or not: its session's next may go, or another session begin."""
        if self._waiting[turn.session]:
            heapq.heappush(self._heads, self._waiting[turn.session][0])
        elif self._closed:
            heapq.heappush(self._heads, self._closed.popleft())

    def next_due(self) -> float | None:
        """When the first turn is due that waits for nothing but its time; None without one."""
        return self._heads[0][0] if self._heads else None


def due_times(turns: Sequence[Turn], speed: float | None) -> list[float]:
    """Seconds from the first request to each, the trace's time running ``speed`` times as fast.

    Without a speed all are due at once, and the number that may run at a time sets the pace.
    """
    if speed is None or not turns:
        return [0.0] * len(turns)
    first = turns[0].request.timestamp_ms
    return [(turn.request.timestamp_ms - first) / 1000 / speed for turn in turns]
