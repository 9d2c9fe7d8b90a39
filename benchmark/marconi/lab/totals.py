"""Adds up what requests found: rates, FLOPs, losses, by length, time to the first token."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.marconi.advice.load.served import Served
from sglang.srt.mem_cache.marconi.advice.load.service import ServiceTimes

from lab.costs import in_time
from lab.spread import Spread

REASONS = ("state_evicted", "kv_evicted", "never_admitted")
#: Tokens: a prompt belongs to the first bin that is not shorter.
LENGTH_BINS = (*(1024 << i for i in range(8)), 1 << 62)


@dataclass
class _Bin:
    requests: int = 0
    input_tokens: int = 0
    hit_tokens: int = 0


@dataclass
class Totals:
    """Totals over the requests added so far; memory does not grow but for 8 bytes a request.

    Attributes:
        first: requests of the trace before it are passed over.
        service: how long a prefill takes.
    """

    cost: ModelCost
    block_tokens: int
    requests: int = 0
    unserved: int = 0
    hits: int = 0
    input_tokens: int = 0
    hit_tokens: int = 0
    saved: float = 0
    needed: float = 0
    time_saved: float = 0
    time_needed: float = 0
    loaded_tokens: int = 0
    copy_seconds: float = 0.0
    lost: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    bins: dict[int, _Bin] = field(default_factory=dict)
    ttfts: list[float] = field(default_factory=list)
    load: Load = field(default_factory=lambda: Load())
    first: int = 0
    service: ServiceTimes = field(default_factory=ServiceTimes)

    def __post_init__(self) -> None:
        self.spread = Spread(self.cost)
        self._in_time = in_time(self.cost, self.service.attention_time)

    def add(self, served: Served) -> None:
        """Count one request in."""
        if served.index < self.first:
            return
        self.requests += 1
        self.unserved += not served.served
        self.hits += served.hit_tokens > 0
        self.input_tokens += served.input_tokens
        self.hit_tokens += served.hit_tokens
        self.saved += self.cost.flops(0, served.hit_tokens)
        self.needed += self.cost.flops(0, served.input_tokens)
        self.time_saved += self._in_time.flops(0, served.hit_tokens)
        self.time_needed += self._in_time.flops(0, served.input_tokens)
        self.loaded_tokens += served.loaded_tokens
        self.copy_seconds += served.copy_seconds
        for reason in REASONS:
            self.lost[reason] += getattr(served.lost, reason) * self.block_tokens
        limit = next(limit for limit in LENGTH_BINS if served.input_tokens <= limit)
        length = self.bins.setdefault(limit, _Bin())
        length.requests += 1
        length.input_tokens += served.input_tokens
        length.hit_tokens += served.hit_tokens
        if served.ttft_seconds is not None:
            self.ttfts.append(served.ttft_seconds)
            self.load.add(served)
        self.spread.add(served)

    def _seconds_saved(self) -> float:
        """Of the seconds of all prefills, what was saved, with copies paid that are waited for."""
        if not self.time_needed:
            return 0.0
        paid = self.copy_seconds * self.service.prefill_flops_per_second
        return (self.time_saved - paid) / self.time_needed

    def as_row(self) -> dict[str, Any]:
        """The part of a result row that requests determine.

        ``token_hit_rate_bound`` counts every whole block that was seen before: no policy and no
        admission can hit more, and it is the same under all of them.
        """
        return {
            "requests": self.requests,
            "unserved": self.unserved,
            "input_tokens": self.input_tokens,
            "token_hit_rate": self.hit_tokens / max(self.input_tokens, 1),
            "token_hit_rate_bound": (self.hit_tokens + sum(self.lost.values()))
            / max(self.input_tokens, 1),
            "request_hit_rate": self.hits / max(self.requests, 1),
            "flops_saved": self.saved / self.needed if self.needed else 0.0,
            "loaded_tokens": self.loaded_tokens,
            "seconds_saved": self._seconds_saved(),
            "lost_tokens": self.lost,
            "by_length": [
                {"max_input_tokens": limit if limit < LENGTH_BINS[-1] else None, **vars(length)}
                for limit, length in sorted(self.bins.items())
            ],
            "ttft_ms_modelled": _milliseconds(self.ttfts),
            "load": self.load.as_row(),
            "spread": self.spread.as_row(),
        }


@dataclass
class Load:
    """How long requests waited for their turn; 8 bytes a request, and two numbers a session."""

    waits: list[float] = field(default_factory=list)
    sessions: dict[str, tuple[float, int]] = field(default_factory=dict)
    first: float = inf
    last: float = 0.0

    def add(self, served: Served) -> None:
        """Count one request in that had to wait, if only for no time at all."""
        if served.wait_seconds is None or served.came_seconds is None:
            return
        self.waits.append(served.wait_seconds)
        self.first = min(self.first, served.came_seconds)
        self.last = max(self.last, served.ended_seconds or 0.0)
        session = served.session or ""
        total, count = self.sessions.get(session, (0.0, 0))
        self.sessions[session] = total + served.wait_seconds, count + 1

    def as_row(self) -> dict[str, Any] | None:
        """The part of a result row that the queue determines; ``None`` where time is not modelled.

        ``queue_length`` is the mean over time: all waits, by the time in which they were waited
        (Little, "A Proof for the Queuing Formula L = λW", Operations Research 9, 1961).
        ``session_wait_ms`` is over the sessions' own means.
        """
        if not self.waits:
            return None
        seconds = max(self.last - self.first, 1e-9)
        means = [total / count for total, count in self.sessions.values()]
        return {
            "requests_per_second": round(len(self.waits) / seconds, 4),
            "queue_length": round(sum(self.waits) / seconds, 2),
            "wait_ms": _milliseconds(self.waits),
            "longest_wait_ms": round(1000 * max(self.waits), 3),
            "session_wait_ms": _milliseconds(means),
        }


def _milliseconds(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    milliseconds = 1000 * np.asarray(seconds)
    p50, p95, p99 = np.percentile(milliseconds, (50, 95, 99))
    return {
        "mean": round(float(milliseconds.mean()), 3),
        "p50": round(float(p50), 3),
        "p95": round(float(p95), 3),
        "p99": round(float(p99), 3),
    }
