"""Whether requests come at a pace that any server could see, or their times have another unit."""

from __future__ import annotations

import math

from traces.request import Request

#: Requests that say nothing yet.
FEW = 20
#: Beyond so many a second, and beyond so few, the unit is questioned.
_MOST_A_SECOND, _LEAST_A_SECOND = 100.0, 1 / 3600
#: No model writes a token in less; in milliseconds.
_SHORTEST_TOKEN_MS = 0.2
_SECOND_MS = 1000.0


class Pace:
    """Follows the arrivals of a trace, and says what is odd about them; some bytes a session.

    Attributes:
        count: requests so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first, self._last = math.inf, -math.inf
        self._pending: dict[str, tuple[float, int]] = {}
        self._turns = self._rushed = 0

    def add(self, request: Request) -> None:
        """Count a request in."""
        at = request.timestamp_ms
        self.count += 1
        self._first, self._last = min(self._first, at), max(self._last, at)
        if request.session is None:
            return
        former = self._pending.get(request.session)
        if former is not None and former[1]:
            self._turns += 1
            self._rushed += at - former[0] < former[1] * _SHORTEST_TOKEN_MS
        self._pending[request.session] = (at, request.output_length)

    def question(self) -> str | None:
        """What is odd, and the flag that sets it right; None where nothing is."""
        span = (self._last - self._first) / _SECOND_MS
        if self.count < FEW or span <= 0:
            return None
        rate = self.count / span
        found = f"{self.count} requests arrive within {span:.4g} s"
        if span <= 1 or rate > _MOST_A_SECOND:
            return f"{found}; {_FLAG}"
        if self._turns >= FEW and self._rushed > self._turns / 2:
            return (
                f"{found}, most of them before their session's last answer can have ended; {_FLAG}"
            )
        if rate < _LEAST_A_SECOND:
            return f"{found}, less than one an hour; {_FLAG}"
        return None


_FLAG = "if their times have another unit, name it with --time-unit (ns, us, ms, s)"
