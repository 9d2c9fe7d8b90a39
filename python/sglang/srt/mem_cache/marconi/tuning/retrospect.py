"""Looks back at a window of requests: what would each choice have saved on it?

A replay starts from an empty cache, as the published simulator's does. Replays that start from what
the live cache held when the window began predict worse: over one window they mostly measure the
way out of what the choice in force had kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.policy import create_policy
from sglang.srt.mem_cache.marconi.savings import SAVINGS, CostModel
from sglang.srt.mem_cache.marconi.tuning.choices import Choice
from sglang.srt.mem_cache.marconi.tuning.events import Began, Event, event_bytes, serve
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape

#: Share of FLOPs saved by which another choice must beat the one in force, once one was chosen.
HYSTERESIS = 0.01


@dataclass(frozen=True)
class Trial:
    """How one choice did over a window.

    Attributes:
        flops_saved: FLOPs of prefilling what hit.
        hit_tokens: prompt tokens that hit.
    """

    flops_saved: float
    hit_tokens: int


@dataclass(frozen=True)
class Verdict:
    """What a window says.

    Attributes:
        chosen: index of the choice to put in force.
        requests: number of requests replayed for each.
        trials: one a choice, in their order.
    """

    chosen: int
    requests: int
    trials: tuple[Trial, ...]


class Retrospect:
    """Remembers the last requests and replays them with every choice.

    Args:
        current: index of the choice in force, ``None`` if nothing was chosen yet: then the best is
            taken by however little it leads.
        max_bytes: about how much memory the requests may take; the oldest are forgotten first.
    """

    def __init__(
        self,
        shape: ShadowShape,
        cost: CostModel,
        choices: Sequence[Choice],
        *,
        current: int | None = None,
        max_bytes: int,
    ) -> None:
        self._shape = shape
        self._cost = cost
        self._choices = tuple(choices)
        self._current = current
        self._max_bytes = max_bytes
        self._events: deque[Event] = deque()
        self._bytes = 0
        self._requests = 0

    def follow(self, event: Event) -> None:
        """Take note of one event."""
        self._events.append(event)
        self._bytes += event_bytes(event)
        self._requests += isinstance(event, Began)
        while self._bytes > self._max_bytes:
            self._forget()

    def look_back(self, requests: int) -> Verdict:
        """Replay the last ``requests`` requests with every choice, and choose one."""
        while self._requests > requests:
            self._forget()
        trials = tuple(self._replay(choice) for choice in self._choices)
        baseline = next((i for i, choice in enumerate(self._choices) if choice.is_stock), None)
        self._current = choose([t.flops_saved for t in trials], self._current, baseline)
        return Verdict(self._current, self._requests, trials)

    def _forget(self) -> None:
        oldest = self._events.popleft()
        self._bytes -= event_bytes(oldest)
        self._requests -= isinstance(oldest, Began)

    def _replay(self, choice: Choice) -> Trial:
        savings = SAVINGS[choice.config.marconi_savings](self._cost)
        shadow = ShadowCache(self._shape, create_policy(choice.config, savings))
        flops, tokens = 0.0, 0
        for event in self._events:
            hit = serve(shadow, event) * self._shape.block_tokens
            if hit:
                tokens += hit
                flops += self._cost.flops(0, hit)
        return Trial(flops, tokens)


def choose(saved: Sequence[float], current: int | None, baseline: int | None) -> int:
    """Which choice to put in force.

    Args:
        saved: FLOPs saved by each; the first of equals is preferred.
        current: the one in force, which is kept unless another saves more by :data:`HYSTERESIS`;
            ``None`` if none was chosen yet.
        baseline: the one that does what the server would do without Marconi, if it is among them:
            a choice that saves less is never kept.
    """
    best = max(range(len(saved)), key=lambda index: saved[index])
    if current is None or (baseline is not None and saved[current] < saved[baseline]):
        return best
    return best if saved[best] > saved[current] * (1 + HYSTERESIS) else current
