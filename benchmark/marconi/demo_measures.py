"""From answered requests to the figures that are compared, and whether they differ."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo_chat import Served

RESAMPLES = 1000


@dataclass(frozen=True)
class Measures:
    """One policy on one workload.

    ``token_hit_rate`` and ``flops_saved_fraction`` are fractions of the prompts' tokens and of
    the FLOPs of prefilling them; TTFT is in milliseconds, throughput in tokens a second of the
    time in which the server had work. ``evictions`` by kind is None where the server counts none.
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
    input_throughput: float
    output_throughput: float
    evictions: Mapping[str, int] | None


@dataclass(frozen=True)
class Difference:
    """A mean difference, bounds around it, what the bounds are, and whether they settle it."""

    mean: float
    low: float
    high: float
    bounds: str
    clear: bool


def measure(
    served: Sequence[Served],
    busy_seconds: float,
    prefill_flops: Callable[[int], float],
    evictions: Mapping[str, int] | None,
) -> Measures:
    """Sum up one server's requests; ``prefill_flops`` gives the FLOPs of a prefix's tokens."""
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
        input_throughput=prompted / busy_seconds,
        output_throughput=sum(request.output_tokens for request in served) / busy_seconds,
        evictions=evictions,
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
    if before is None or after is None:
        return None
    old: Mapping[str, int] = before["victims"]
    new: Mapping[str, int] = after["victims"]
    return {
        kind: count - old.get(kind, 0) for kind, count in new.items() if count > old.get(kind, 0)
    }


def paired_difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Difference:
    """Mean of ``ours - theirs`` over requests served side by side, with a bootstrap interval."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    rng = random.Random(seed)
    count = len(differences)
    means = sorted(sum(rng.choices(differences, k=count)) / count for _ in range(RESAMPLES))
    low, high = quantile(means, 0.025), quantile(means, 0.975)
    mean = sum(differences) / count
    return Difference(mean, low, high, "95 % interval over paired requests", low > 0 or high < 0)


def difference_of_runs(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Difference of the mean of runs made one after the other, bounded by the extreme pairs.

    Between such runs the machine may have changed, which no resampling of requests shows: the
    difference is clear only if there are two runs or more and all pairs agree on its sign.
    """
    low, high = min(ours) - max(theirs), max(ours) - min(theirs)
    enough = min(len(ours), len(theirs)) > 1
    mean = sum(ours) / len(ours) - sum(theirs) / len(theirs)
    bounds = (
        f"over all pairs of {len(ours)} runs each"
        if enough
        else "one run each, made one after the other"
    )
    return Difference(mean, low, high, bounds, enough and (low > 0 or high < 0))
