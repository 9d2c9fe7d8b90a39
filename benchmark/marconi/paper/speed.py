"""CPU seconds per 1,000 requests with 3,000 cached nodes, beside the published simulator's.

    python benchmark/marconi/paper/speed.py

The workload is made here, with a fixed seed: conversations in random turn, each turn a lookup and
an insert of the whole history. The cache is filled first, untimed; so is making the token lists.
The published times were taken on another machine and another workload of the same size.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    # Run as a file, this folder is on the path where its parent should be.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from paper.cost import PaperModel
from paper.engine import PaperCache, PaperConfig
from paper.modes import MODES
from paper.policies import Policy

TURNS = 7
LIVE = 200
"""Conversations at a time."""
VOCABULARY = 32_000
OUTPUT_SHARE = 0.25
HEADROOM: dict[Policy, float] = {"v3": 1.3, "v1": 1.05, "vllm": 1.0}
"""Room for so many times the nodes asked for, that their mean may reach it."""

Turns = Iterator[tuple[NDArray[np.uint32], NDArray[np.uint32]]]
"""Input and output of one request after another."""


@dataclass(frozen=True)
class Case:
    """One row: a policy, the mean path in tokens, and what the published simulator needs."""

    policy: Policy
    path_tokens: int
    published_seconds: float
    """CPU seconds per 1,000 requests at 3,000 nodes (specification 13)."""


CASES = (
    Case("v3", 1000, 64.0),
    Case("v3", 4000, 155.0),
    Case("v1", 1000, 8.4),
    Case("v1", 4000, 13.1),
    Case("vllm", 1000, 4.4),
)


@dataclass(frozen=True)
class Measured:
    """What one row found."""

    mean_nodes: float
    mean_path_tokens: float
    evicted: int
    seconds: float


def conversations(path_tokens: int, live: int, seed: int) -> Turns:
    """Endless turns of ``live`` conversations; a path is ``path_tokens`` long on average."""
    random = np.random.Generator(np.random.PCG64(seed))
    turn_tokens = 2 * path_tokens // (TURNS + 1)
    empty = np.zeros(0, np.uint32)
    histories = [empty] * live
    turns = [int(turn) for turn in random.integers(0, TURNS, live)]
    while True:
        which = int(random.integers(live))
        if turns[which] == TURNS:
            histories[which], turns[which] = empty, 0
        length = int(random.integers(turn_tokens // 2, turn_tokens * 3 // 2 + 1))
        fresh = random.integers(0, VOCABULARY, length, dtype=np.uint32)
        whole = np.concatenate([histories[which], fresh])
        answer = int(length * OUTPUT_SHARE)
        yield whole[: len(whole) - answer], whole[len(whole) - answer :]
        histories[which] = whole
        turns[which] += 1


def measure(case: Case, mode: str, nodes: int, requests: int, seed: int) -> Measured:
    """Fill a cache of about ``nodes`` nodes, then time ``requests`` requests."""
    cache, source = _filled(case, mode, nodes, seed)
    cache.restart_metrics()
    timed = [(question.tolist(), answer.tolist()) for question, answer in islice(source, requests)]
    held = 0
    begin = time.process_time()
    for question, answer in timed:
        held += cache.serve(question, answer).nodes
    seconds = time.process_time() - begin
    total = sum(len(question) + len(answer) for question, answer in timed)
    return Measured(held / requests, total / requests, cache.summary().evicted, seconds)


def _filled(case: Case, mode: str, nodes: int, seed: int) -> tuple[PaperCache, Turns]:
    """A cache that has just begun to evict.

    Marconi gathers ever longer segments from there on, in ever fewer nodes, hence the headroom.
    """
    model = PaperModel()
    own_tokens = 32 if case.policy == "vllm" else 2 * case.path_tokens // (TURNS + 1)
    config = PaperConfig(
        policy=case.policy,
        capacity_bytes=int(nodes * model.node_bytes(own_tokens) * HEADROOM[case.policy]),
        alpha=1.0 if case.policy == "v3" else 0.0,
        fixes=MODES[mode],
        model=model,
    )
    cache = PaperCache(config)
    source = conversations(case.path_tokens, LIVE, seed)
    for question, answer in islice(source, LIVE * TURNS):
        cache.serve(question, answer)
    while cache.summary().evict_calls == 0:
        cache.serve(*next(source))
    return cache, source


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row a case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=3000, help="cached nodes to aim at")
    parser.add_argument("--requests", type=int, default=1000, help="timed requests")
    parser.add_argument("--mode", choices=sorted(MODES), default="as_published")
    parser.add_argument("--repeats", type=int, default=3, help="runs a row; the median is shown")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    print(
        "| policy | mean path, tokens | mean nodes | evicted a request "
        "| s per 1,000 requests (min, max) | published | times faster |"
    )
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        runs = [
            measure(case, options.mode, options.nodes, options.requests, options.seed)
            for _ in range(options.repeats)
        ]
        runs.sort(key=lambda run: run.seconds)
        print(_row(case, runs, options.requests), flush=True)
    return 0


def _row(case: Case, runs: Sequence[Measured], requests: int) -> str:
    seconds = [run.seconds * 1000 / requests for run in runs]
    middle, run = seconds[len(seconds) // 2], runs[0]
    return (
        f"| {case.policy} | {run.mean_path_tokens:,.0f} | {run.mean_nodes:,.0f} "
        f"| {run.evicted / requests:.2f} | {middle:.3f} ({seconds[0]:.3f}, {seconds[-1]:.3f}) "
        f"| {case.published_seconds:g} | {case.published_seconds / middle:,.0f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
