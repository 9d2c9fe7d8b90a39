"""When to look back and when to ask for the answer: at counted requests, the same on all ranks."""

from __future__ import annotations

import math
from enum import Enum

from sglang.srt.mem_cache.marconi.config import MarconiConfig

#: While an answer is pending it is asked for once in so many requests.
ASK_EVERY = 16
#: Requests that the first window may wait for after the first eviction.
LONGEST_BOOTSTRAP = 10_000


class Step(Enum):
    """What is to be done after a counted request."""

    NOTHING = 0
    LOOK_BACK = 1
    ASK = 2


class Schedule:
    """Counts requests; decides nothing by time.

    Nothing is tuned before the first eviction. The first window is all requests up to
    ``marconi_bootstrap_multiplier`` times those counted by then (paper, section 4.2). Later ones
    end ``marconi_tuning_interval`` requests after the answer to the one before, and reach back as
    far as the first: a replay that is too short to fill the cache would tell nothing apart.

    Attributes:
        requests: counted so far.
        window: requests that a window holds, 0 until the first eviction.
        next_look_back: the count at which the next window ends.
    """

    def __init__(self, config: MarconiConfig) -> None:
        self._multiplier = config.marconi_bootstrap_multiplier
        self._interval = config.marconi_tuning_interval
        self.requests = 0
        self.window = 0
        self.next_look_back: int | None = None
        self._asking_since: int | None = None
        self._over = False

    @property
    def is_pending(self) -> bool:
        """A window has ended and its answer is awaited."""
        return self._asking_since is not None

    def count(self, evicted: bool) -> Step:
        """Count one request.

        Args:
            evicted: the cache has evicted something since it was made.
        """
        self.requests += 1
        if self._asking_since is not None:
            asked = (self.requests - self._asking_since) % ASK_EVERY == 0
            return Step.ASK if asked else Step.NOTHING
        if self._over or not evicted:
            return Step.NOTHING
        if self.next_look_back is None:
            end = max(math.ceil(self._multiplier * self.requests), self.requests + 1)
            self.next_look_back = min(end, self.requests + LONGEST_BOOTSTRAP)
            self.window = max(self.next_look_back, self._interval)
        if self.requests < self.next_look_back:
            return Step.NOTHING
        self._asking_since = self.requests
        return Step.LOOK_BACK

    def answered(self, gave_up: bool) -> None:
        """All ranks have the answer, or know that there will be none."""
        self._asking_since = None
        self._over = not self._interval and not gave_up
        self.next_look_back = self.requests + (self._interval or self.window)
