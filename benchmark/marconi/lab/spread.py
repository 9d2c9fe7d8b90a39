"""Whom hits go to: the worst stretch of a run, sessions that miss again, long prefills."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.marconi.advice.load.served import Served

#: Requests of a stretch.
WINDOW = 500
#: Turns from which on a session that never hits is counted.
FEW_TURNS = 5


@dataclass(slots=True)
class _Session:
    """One session so far.

    Attributes:
        before: tokens of its last prompt.
        streak: turns in a row that missed, up to the last one.
    """

    before: int
    turns: int = 1
    hits: int = 0
    streak: int = 0


@dataclass
class Spread:
    """How evenly hits fall; memory grows by 8 bytes a request and a few numbers a session.

    A turn misses if it resumes at less than half of the prompt of its session's turn before. A
    session's first turn has none before it, and neither hits nor misses.
    """

    cost: ModelCost
    windows: list[list[float]] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    sessions: dict[str, _Session] = field(default_factory=dict)
    after_miss: int = 0
    missed_again: int = 0
    longest: int = 0

    def add(self, served: Served) -> None:
        """Count one request in."""
        if len(self.computed) % WINDOW == 0:
            self.windows.append([0.0, 0.0])
        self.computed.append(served.input_tokens - served.hit_tokens)
        window = self.windows[-1]
        window[0] += self.cost.flops(0, served.hit_tokens)
        window[1] += self.cost.flops(0, served.input_tokens)
        if served.session is None:
            return
        session = self.sessions.get(served.session)
        if session is None:
            self.sessions[served.session] = _Session(served.input_tokens)
            return
        missed = 2 * served.hit_tokens < session.before
        if session.streak:
            self.after_miss += 1
            self.missed_again += missed
        session.turns += 1
        session.hits += not missed
        session.streak = session.streak + 1 if missed else 0
        session.before = served.input_tokens
        self.longest = max(self.longest, session.streak)

    def as_row(self) -> dict[str, Any]:
        """The part of a result row that says how even the others are; ``None``: nothing to tell.

        ``uncached_tokens`` are those of a prompt that were computed.
        """
        whole = self.windows[: len(self.computed) // WINDOW]
        long = [one for one in self.sessions.values() if one.turns >= FEW_TURNS]
        p50, p95 = np.percentile(self.computed, (50, 95)) if self.computed else (0, 0)
        return {
            "worst_window": min(saved / max(needed, 1.0) for saved, needed in whole)
            if whole
            else None,
            "never_hit": sum(not one.hits for one in long) / len(long) if long else None,
            "miss_after_miss": self.missed_again / self.after_miss if self.after_miss else None,
            "longest_miss_streak": self.longest if self.sessions else None,
            "uncached_tokens": {"p50": round(float(p50)), "p95": round(float(p95))},
        }
