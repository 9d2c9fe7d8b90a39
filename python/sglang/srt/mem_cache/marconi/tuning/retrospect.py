"""Looks back at a window of requests: what would each candidate have saved on it?"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.policy import create_policy
from sglang.srt.mem_cache.marconi.savings import SAVINGS, CostModel
from sglang.srt.mem_cache.marconi.tuning.choices import Choice
from sglang.srt.mem_cache.marconi.tuning.requests import Began, Event, event_bytes, serve
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape

#: Share of FLOPs saved by which a candidate must beat the one in force, once one was chosen.
HYSTERESIS = 0.01


@dataclass(frozen=True)
class Trial:
    """How one candidate did over a window.

    Attributes:
        flops_saved: FLOPs of prefilling what hit.
        hit_tokens: tokens of KV and states that hit.
    """

    flops_saved: float
    hit_tokens: int


@dataclass(frozen=True)
class Verdict:
    """What a window says.

    Attributes:
        chosen: index of the candidate to adopt.
        requests: number of requests replayed for each.
        trials: one a candidate, in their order.
    """

    chosen: int
    requests: int
    trials: tuple[Trial, ...]


class Retrospect:
    """Follows the stream of requests and replays the last window with every candidate.

    A shadow follows up to where the window begins, under the candidate in force, so that a replay
    starts from about what the live cache held then. Requests too old for ``max_bytes`` leave the
    window at its beginning.
    """

    def __init__(
        self,
        shape: ShadowShape,
        cost: CostModel,
        choices: Sequence[Choice],
        *,
        max_bytes: int,
    ) -> None:
        self._shape = shape
        self._cost = cost
        self._choices = tuple(choices)
        self._max_bytes = max_bytes
        self._current = 0
        self._window: deque[Event] = deque()
        self._bytes = 0
        self._chosen_before = False
        self._start = self._shadow(self._current)

    def follow(self, event: Event) -> None:
        """Take note of one event."""
        self._window.append(event)
        self._bytes += event_bytes(event)
        while self._bytes > self._max_bytes:
            oldest = self._window.popleft()
            self._bytes -= event_bytes(oldest)
            serve(self._start, oldest)

    def look_back(self) -> Verdict:
        """Replay the window with every candidate, choose one, and begin the next window."""
        trials = []
        for index in range(len(self._choices)):
            shadow = self._shadow(index, self._start)
            trials.append(self._replay(shadow))
            if index == self._current:
                ended = shadow
        saved = [trial.flops_saved for trial in trials]
        chosen = choose(
            saved,
            self._current,
            baseline=next((i for i, c in enumerate(self._choices) if c.is_stock), None),
            margin=HYSTERESIS if self._chosen_before else 0.0,
        )
        requests = sum(isinstance(event, Began) for event in self._window)
        self._chosen_before = True
        self._current = chosen
        self._start = self._shadow(chosen, ended)
        self._window.clear()
        self._bytes = 0
        return Verdict(chosen, requests, tuple(trials))

    def _replay(self, shadow: ShadowCache) -> Trial:
        flops, tokens = 0.0, 0
        for event in self._window:
            hit = serve(shadow, event) * self._shape.block_tokens
            if hit:
                tokens += hit
                flops += self._cost.flops(0, hit)
        return Trial(flops, tokens)

    def _shadow(self, index: int, start: ShadowCache | None = None) -> ShadowCache:
        config = self._choices[index].config
        policy = create_policy(config, SAVINGS[config.marconi_savings](self._cost))
        return ShadowCache(self._shape, policy) if start is None else start.copy(policy)


def choose(saved: Sequence[float], current: int, *, baseline: int | None, margin: float) -> int:
    """Which candidate to adopt.

    Args:
        saved: FLOPs saved by each candidate; the first of equals is preferred.
        current: the candidate in force.
        baseline: the candidate that does what the server would do without Marconi, if any: one
            that saves less is never kept.
        margin: share by which another must beat the one in force; 0 to take the best.
    """
    best = max(range(len(saved)), key=lambda index: saved[index])
    if margin == 0.0 or (baseline is not None and saved[current] < saved[baseline]):
        return best
    return best if saved[best] > saved[current] * (1 + margin) else current
