"""From answered requests to the figures that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from demonstration.served import Run


@dataclass(frozen=True)
class Measures:
    """One server on one workload, all its runs together.

    ``token_hit_rate`` and ``flops_saved_fraction`` are fractions of the prompts' tokens and of
    the FLOPs of prefilling them; TTFT is in milliseconds; rates are per second in which the server
    had work, ``run_rates`` are requests a second of each run. ``cpu_seconds`` of the server a
    request is 0 where nobody looked. ``evictions`` by "pool:kind" and ``lost_tokens`` by reason
    are None where the server counts none.
    """

    requests: int
    prompt_tokens: int
    token_hit_rate: float
    flops_saved: float
    flops_saved_fraction: float
    ttft_mean: float
    ttft_p50: float
    ttft_p95: float
    ttft_p99: float
    requests_per_s: float
    run_rates: tuple[float, ...]
    input_throughput: float
    output_throughput: float
    cpu_seconds_a_request: float
    evictions: Mapping[str, int] | None = None
    lost_tokens: Mapping[str, int] | None = None


def measure(
    runs: Sequence[Run],
    prefill_flops: Callable[[int], float],
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> Measures:
    """Sum up one server's runs.

    Args:
        prefill_flops: FLOPs of prefilling a prefix of so many tokens.
        before: Marconi's counters before the first run; ``after``, those after the last.
    """
    served = [request for run in runs for request in run.served]
    seconds = sum(run.seconds for run in runs)
    prompted = sum(request.prompt_tokens for request in served)
    saved = sum(prefill_flops(request.cached_tokens) for request in served)
    ttfts = sorted(1000 * request.ttft for request in served)
    return Measures(
        requests=len(served),
        prompt_tokens=prompted,
        token_hit_rate=sum(request.cached_tokens for request in served) / prompted,
        flops_saved=saved,
        flops_saved_fraction=saved / sum(prefill_flops(r.prompt_tokens) for r in served),
        ttft_mean=sum(ttfts) / len(ttfts),
        ttft_p50=quantile(ttfts, 0.50),
        ttft_p95=quantile(ttfts, 0.95),
        ttft_p99=quantile(ttfts, 0.99),
        requests_per_s=len(served) / seconds,
        run_rates=tuple(len(run.served) / run.seconds for run in runs),
        input_throughput=prompted / seconds,
        output_throughput=sum(request.output_tokens for request in served) / seconds,
        cpu_seconds_a_request=sum(run.cpu_seconds for run in runs) / len(served),
        evictions=victims_since(before, after),
        lost_tokens=counted_since("lost_tokens", before, after),
    )


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """The quantile of values in ascending order, linear between neighbours."""
    place = fraction * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def victims_since(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> dict[str, int] | None:
    """Evictions by "pool:kind" between two readings of the counters; None without counters."""
    return counted_since("victims", before, after)


def counted_since(
    counter: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> dict[str, int] | None:
    """What a counter of several kinds counted between two readings; None without counters."""
    if before is None or after is None:
        return None
    old: Mapping[str, int] = before[counter]
    new: Mapping[str, int] = after[counter]
    return {
        kind: count - old.get(kind, 0) for kind, count in new.items() if count > old.get(kind, 0)
    }


@dataclass(frozen=True)
class Ratio:
    """How many times another's a figure is: the median over runs made in turn, and its extremes."""

    middle: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Two runs or more, and all agree on who is ahead."""
        return self.low < self.high and (self.low > 1 or self.high < 1)


def rate_ratio(ours: Measures, theirs: Measures) -> Ratio:
    """Requests a second, run by run: runs of the same round stood close to each other."""
    ratios = [a / b for a, b in zip(ours.run_rates, theirs.run_rates, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))
