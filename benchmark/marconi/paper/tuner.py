"""Marconi's tuning of its weight, once: replay the first requests with every weight, keep the best.

Specification 7; paper section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from paper.records import RequestRecord, Summary

ALPHAS: tuple[float, ...] = tuple(tenths / 10 for tenths in range(21))
"""The weights tried: 0, 0.1, … 2."""

SCORED_REQUESTS = 500
"""Only so many requests at the end of the window count (B12)."""


class Replayable(Protocol):
    """A cache that can be fed the window."""

    def serve(self, input_tokens: bytes, output_tokens: bytes) -> RequestRecord:
        """Look a request up and insert it."""

    def summary(self) -> Summary:
        """Totals since the cache, or its metrics, began."""

    def restart_metrics(self) -> None:
        """Forget the totals, keep the contents."""


@dataclass(frozen=True)
class Trial:
    """How one weight did over the scored part of the window."""

    alpha: float
    request_hit_rate: float
    token_hit_rate: float
    flops_saved: int


@dataclass(frozen=True)
class TunerReport:
    """The tuner's one run."""

    at_request: int
    """Index of the request being inserted, counted from 0."""
    window: int
    """Requests replayed."""
    trials: tuple[Trial, ...]
    best_alpha: float

    @property
    def tied(self) -> tuple[float, ...]:
        """Every weight that saves as much as the best."""
        most = max(trial.flops_saved for trial in self.trials)
        return tuple(trial.alpha for trial in self.trials if trial.flops_saved == most)


class Bootstrap:
    """Keeps the first requests until their number is ``multiplier`` times that of the first evict.

    As the window is set after its check has passed, a multiplier of 1 never tunes (B11).
    """

    def __init__(self, multiplier: int) -> None:
        self.window: int | None = None
        self.report: TunerReport | None = None
        self._multiplier = multiplier
        self._history: list[tuple[bytes, bytes]] = []
        self._waiting = True

    def looked_up(self, input_tokens: bytes, output_tokens: bytes) -> None:
        """Remember a request, as long as it may be replayed."""
        if self._waiting:
            self._history.append((input_tokens, output_tokens))

    def evicting(self, request: int) -> None:
        """Set the window at the first evict call; ``request`` counts from 1."""
        if self.window is None:
            self.window = self._multiplier * request
            if self.window <= request:
                self._stop()

    def tune(self, request: int, fresh_cache: Callable[[float], Replayable]) -> TunerReport | None:
        """Replay the window if ``request`` (from 1) completes it. Ties go to the lowest weight."""
        if request != self.window or not self._waiting:
            return None
        trials = tuple(_replay(alpha, fresh_cache(alpha), self._history) for alpha in ALPHAS)
        best = max(trials, key=lambda trial: trial.flops_saved)
        self.report = TunerReport(request - 1, request, trials, best.alpha)
        self._stop()
        return self.report

    def _stop(self) -> None:
        self._waiting = False
        self._history.clear()


def _replay(alpha: float, cache: Replayable, history: Sequence[tuple[bytes, bytes]]) -> Trial:
    for index, (input_tokens, output_tokens) in enumerate(history):
        if index == len(history) - SCORED_REQUESTS:
            cache.restart_metrics()
        cache.serve(input_tokens, output_tokens)
    done = cache.summary()
    return Trial(alpha, done.request_hit_rate, done.token_hit_rate, done.flops_saved)
