"""Adds up what requests found: rates, FLOPs, losses, by length, time to the first token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sglang.srt.marconi_utils import ModelCost

from lab.served import Served

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
    lost: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    bins: dict[int, _Bin] = field(default_factory=dict)
    ttfts: list[float] = field(default_factory=list)
    first: int = 0

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
        for reason in REASONS:
            self.lost[reason] += getattr(served.lost, reason) * self.block_tokens
        limit = next(limit for limit in LENGTH_BINS if served.input_tokens <= limit)
        length = self.bins.setdefault(limit, _Bin())
        length.requests += 1
        length.input_tokens += served.input_tokens
        length.hit_tokens += served.hit_tokens
        if served.ttft_seconds is not None:
            self.ttfts.append(served.ttft_seconds)

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
            "lost_tokens": self.lost,
            "by_length": [
                {"max_input_tokens": limit if limit < LENGTH_BINS[-1] else None, **vars(length)}
                for limit, length in sorted(self.bins.items())
            ],
            "ttft_ms_modelled": self._ttft(),
        }

    def _ttft(self) -> dict[str, float] | None:
        if not self.ttfts:
            return None
        milliseconds = 1000 * np.asarray(self.ttfts)
        p50, p95, p99 = np.percentile(milliseconds, (50, 95, 99))
        return {
            "mean": round(float(milliseconds.mean()), 3),
            "p50": round(float(p50), 3),
            "p95": round(float(p95), 3),
            "p99": round(float(p99), 3),
        }
