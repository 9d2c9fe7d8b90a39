"""Redoes the fits behind ``chat_workload.py`` from a trace, and says how well they fit.

    python benchmark/marconi/fit_chat_workload.py sharegpt-a.jsonl.xz

The trace has one JSON object a line: timestamp (ms), session_id, input_length, output_length.
Prints each family's maximum-likelihood parameters on this trace, their Kolmogorov-Smirnov (KS)
distance to it, that of the parameters in use, and both medians. Needs NumPy and SciPy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import lzma
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, stats

from traces.generator.chat import (
    FIRST_PROMPT,
    GAP,
    LATER_PROMPT,
    REPLY,
    SESSION_GAP_SECONDS,
    TURNS,
    GeometricMixture,
    LognormalMixture,
    TypingGap,
)

Values = np.ndarray[Any, np.dtype[Any]]
# Longest gaps between session starts that are left out: the trace's own tail, not arrivals.
CUT_STARTS = 0.01
STEPS = 500


@dataclass(frozen=True)
class Samples:
    """What a trace says of each quantity; lengths in tokens, times in seconds."""

    turns: Values
    first_prompts: Values
    later_prompts: Values
    replies: Values
    gaps: Values
    start_gaps: Values


def read_samples(path: Path) -> Samples:
    """Read a trace, xz-compressed or plain."""
    opener = lzma.open if path.suffix == ".xz" else open
    sessions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with opener(path, "rt") as lines:
        for line in lines:
            request = json.loads(line)
            sessions[request["session_id"]].append(request)
    pairs = [pair for requests in sessions.values() for pair in itertools.pairwise(requests)]
    new = np.array([b["input_length"] - a["input_length"] - a["output_length"] for a, b in pairs])
    gaps = np.array([(b["timestamp"] - a["timestamp"]) / 1000 for a, b in pairs])
    starts = sorted(requests[0]["timestamp"] / 1000 for requests in sessions.values())
    start_gaps = np.sort(np.diff(starts))
    return Samples(
        turns=np.array([len(requests) for requests in sessions.values()]),
        first_prompts=np.array([requests[0]["input_length"] for requests in sessions.values()]),
        later_prompts=new[new > 0],
        replies=np.array([r["output_length"] for rs in sessions.values() for r in rs]),
        gaps=gaps[new > 0],
        start_gaps=start_gaps[: int(len(start_gaps) * (1 - CUT_STARTS))],
    )


def fit_lognormals(values: Values) -> LognormalMixture:
    """Two lognormals by expectation maximisation."""
    logs = np.log(values)
    means, sigmas = np.quantile(logs, [0.3, 0.9]), np.full(2, logs.std())
    weights = np.full(2, 0.5)
    for _ in range(STEPS):
        shares = weights * stats.norm.pdf(logs[:, None], means, sigmas)
        shares /= shares.sum(axis=1, keepdims=True)
        counts = shares.sum(axis=0)
        weights = counts / len(logs)
        means = (shares * logs[:, None]).sum(axis=0) / counts
        sigmas = np.sqrt((shares * (logs[:, None] - means) ** 2).sum(axis=0) / counts)
    low, high = (float(median) for median in np.exp(means))
    return LognormalMixture(float(weights[0]), (low, high), (float(sigmas[0]), float(sigmas[1])))


def fit_geometrics(values: Values, least: int) -> GeometricMixture:
    """``least`` plus two geometric laws, by maximum likelihood."""
    extra = values[values >= least] - least

    def surprise(parameters: Values) -> float:
        weight, first, second = 1 / (1 + np.exp(-parameters))
        chance = (
            weight * first * (1 - first) ** extra + (1 - weight) * second * (1 - second) ** extra
        )
        return float(-np.log(chance + 1e-300).sum())

    found = optimize.minimize(surprise, [0.0, -0.5, -3.0], method="Nelder-Mead").x
    weight, first, second = (float(value) for value in 1 / (1 + np.exp(-found)))
    return GeometricMixture(least, weight, (first, second))


def fit_gap(gaps: Values, tokens: Values) -> TypingGap:
    """A constant pause, then Weibull seconds a token."""
    pause = float(gaps.min())
    rates = (gaps - pause) / tokens
    shape, _, scale = stats.weibull_min.fit(rates[rates > 0], floc=0)
    return TypingGap(pause, float(shape), float(scale))


def ks_of_law(values: Values, cdf: Callable[[float], float]) -> float:
    """Largest distance of a law of whole numbers from the sample (a law rounds at the half)."""
    points, counts = np.unique(values, return_counts=True)
    seen = np.cumsum(counts) / len(values)
    return float(np.max(np.abs(seen - np.array([cdf(point + 0.5) for point in points]))))


def gap_sample(law: TypingGap, tokens: Values) -> Values:
    """One gap for each prompt of the trace, drawn from ``law``."""
    rates = np.random.default_rng(0).weibull(law.shape, len(tokens)) * law.seconds_per_token
    return law.pause + tokens * rates


def _median(cdf: Callable[[float], float], high: float = 1e5) -> float:
    return float(optimize.brentq(lambda value: cdf(value) - 0.5, 1e-6, high))


def main() -> None:
    """Print every fit beside the parameters in use."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trace", type=Path)
    samples = read_samples(parser.parse_args().trace)
    for name, values, fitted, used in (
        ("turns", samples.turns, fit_geometrics(samples.turns, TURNS.least), TURNS),
        (
            "first prompt",
            samples.first_prompts,
            fit_lognormals(samples.first_prompts),
            FIRST_PROMPT,
        ),
        (
            "later prompts",
            samples.later_prompts,
            fit_lognormals(samples.later_prompts),
            LATER_PROMPT,
        ),
        ("replies", samples.replies, fit_lognormals(samples.replies), REPLY),
    ):
        print(f"{name}: {fitted}")
        print(f"  KS {ks_of_law(values, fitted.cdf):.4f}, in use {ks_of_law(values, used.cdf):.4f}")
        print(f"  median {_median(used.cdf):.1f}, of the trace {np.median(values):.1f}")
    gap = fit_gap(samples.gaps, samples.later_prompts)
    drawn = gap_sample(GAP, samples.later_prompts)
    print(f"gap: {gap}\n  KS in use {stats.ks_2samp(drawn, samples.gaps).statistic:.4f}")
    print(f"  median {np.median(drawn):.1f}, of the trace {np.median(samples.gaps):.1f}")
    mean = float(samples.start_gaps.mean())
    distance = stats.kstest(samples.start_gaps, "expon", args=(0, SESSION_GAP_SECONDS)).statistic
    print(f"session starts: exponential, mean {mean:.3f} s\n  KS in use {distance:.4f}")


if __name__ == "__main__":
    main()
