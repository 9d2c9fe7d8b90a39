"""How long does choosing a victim take as the cache grows? The index beside a scan.

    python benchmark/marconi/candidates_speed.py

A step is what a full cache sees at each request: one prefix is hit, one comes in, one victim is
chosen and goes. What is hit is mostly recent; FLOPs saved per byte are those of prompts with
log-normal lengths, in whole blocks of 64 tokens. The history begins 20 ticks a prefix back, so
that old prefixes lie far apart. Times are of this process's CPU; ``worst`` is the slowest single
step, ``k`` the mean number of candidates that no other one undercuts in both last access and
efficiency. What the clock makes of policy 3's prefixes (they grow older) counts as an update.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sglang.srt.marconi_utils import cost_by_name
from sglang.srt.mem_cache.marconi.eviction.candidates import Candidates
from sglang.srt.mem_cache.marconi.eviction.savings import SurvivingSavings, flop_efficiency
from sglang.srt.mem_cache.marconi.eviction.value import ValuePolicy
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

from speed.scanned_candidates import ScannedCandidates

BLOCK = 64
MODEL = "Qwen3-Next-80B-A3B-Instruct"
#: Beyond this a scan takes seconds a victim.
LARGEST_SCAN = 10_000
SCANNED_STEPS = 200
SETTLING_STEPS = 50_000


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prefixes", type=int, nargs="+", default=[10**n for n in range(3, 7)])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--policy", type=int, nargs="+", default=[2, 3], choices=[2, 3])
    parser.add_argument("--eff-weight", type=float, nargs="+", default=[0.5], help="of policy 2")
    options = parser.parse_args(argv)
    print(
        "| prefixes | policy | alpha | µs a step | of it the decision | worst, ms "
        "| scan, µs a step | k | bytes a prefix |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for prefixes in options.prefixes:
        for eff_weight in options.eff_weight if 2 in options.policy else ():
            print(measured(prefixes, eff_weight, options.steps).row(), flush=True)
        if 3 in options.policy:
            print(measured_value(prefixes, options.steps).row(), flush=True)


@dataclass
class Measured:
    """Figures of one size; times in µs a step, ``worst`` too."""

    prefixes: int
    policy: int
    step: float
    decision: float
    worst: float
    bytes: float
    eff_weight: float | None = None
    scan: float | None = None
    staircase: float | None = None

    def row(self) -> str:
        weight, scan, staircase = (
            "" if value is None else format(value, form)
            for value, form in (
                (self.eff_weight, "g"),
                (self.scan, ",.0f"),
                (self.staircase, ".1f"),
            )
        )
        return (
            f"| {self.prefixes:,} | {self.policy} | {weight} | {self.step:.1f} "
            f"| {self.decision:.1f} | {self.worst / 1000:.2f} | {scan} | {staircase} "
            f"| {self.bytes:,.0f} |"
        )


class ValueCandidates:
    """Policy 3 for the state pool, asked and told as :class:`Candidates` are."""

    def __init__(self) -> None:
        self.policy = ValuePolicy(cost_by_name(MODEL), frozenset({Pool.STATE}))
        self._known: set[int] = set()

    def put(self, prefix: CachedPrefix) -> None:
        if prefix.id in self._known:
            self.policy.on_hit(prefix, prefix.last_access)
        else:
            self._known.add(prefix.id)
            self.policy.on_insert(prefix, prefix.last_access)

    def pass_time(self, now: int) -> None:
        self.policy.victim(Pool.STATE, now)

    def lowest(self, pool: Pool, now: int, eff_weight: float) -> CachedPrefix | None:
        return self.policy.victim(pool, now)

    def discard(self, prefix: CachedPrefix) -> None:
        self._known.remove(prefix.id)
        self.policy.on_remove(prefix)


AnyCandidates = Candidates | ScannedCandidates | ValueCandidates


class History:
    """A pool of constant size; prefixes enter, are hit, and leave as its candidates say."""

    def __init__(self, prefixes: int, candidates: AnyCandidates) -> None:
        self.candidates = candidates
        self.rng = random.Random(prefixes)
        self.next_id = 0
        # Ages are log-uniform, as those of a cache that has been full for long.
        oldest = 20 * prefixes
        ages = sorted((int(oldest ** self.rng.random()) for _ in range(prefixes)), reverse=True)
        self.now = oldest + 1
        self.recent: list[CachedPrefix] = []
        for age in ages:
            self.insert(self.now - age)

    def insert(self, last_access: int) -> CachedPrefix:
        depth = 1 + min(int(self.rng.lognormvariate(3, 1.2)), 2000)
        above = self.rng.randrange(depth)
        prefix = CachedPrefix(
            id=self.next_id,
            order=self.next_id,
            depth=depth * BLOCK,
            segment_from=above * BLOCK,
            exclusive_from=above * BLOCK,
            reuse_from=above * BLOCK,
            children=0,
            has_state=True,
            is_leaf=True,
            state_locked=False,
            last_access=last_access,
        )
        self.next_id += 1
        self.candidates.put(prefix)
        self.recent.append(prefix)
        return prefix

    def step(self, eff_weight: float) -> tuple[float, float]:
        """Seconds of updates and of the decision; making up the requests is not counted."""
        hit = self.recent[-1 - min(int(self.rng.paretovariate(0.5)), len(self.recent) - 1)]
        self.now += 3
        clock = time.process_time
        before = clock()
        if hit.has_state:
            hit.last_access = self.now
            self.candidates.put(hit)
        updates = clock() - before
        before = clock()
        self.insert(self.now)
        if isinstance(self.candidates, ValueCandidates):
            self.candidates.pass_time(self.now + 1)
        updates += clock() - before
        before = clock()
        victim = self.candidates.lowest(Pool.STATE, self.now + 1, eff_weight)
        decision = clock() - before
        assert victim is not None
        before = clock()
        self.candidates.discard(victim)
        updates += clock() - before
        victim.has_state = False
        return updates, decision


def price() -> Callable[[CachedPrefix], float]:
    savings = SurvivingSavings(cost_by_name(MODEL))
    return lambda prefix: flop_efficiency(savings, prefix)


def measured(prefixes: int, eff_weight: float, steps: int) -> Measured:
    indexed = Candidates((Pool.STATE,), price())
    history = History(prefixes, indexed)
    gc.collect()
    times = [history.step(eff_weight) for _ in range(steps)]
    scan = None
    if prefixes <= LARGEST_SCAN:
        scanned = History(prefixes, ScannedCandidates(Pool.STATE, price()))
        scan = statistics.fmean(sum(scanned.step(eff_weight)) for _ in range(SCANNED_STEPS)) * 1e6
    steps_of_staircase = []
    for _ in range(5):
        steps_of_staircase.append(staircase(indexed, price()))
        for _ in range(20):
            history.step(eff_weight)
    return Measured(
        prefixes,
        2,
        step=statistics.fmean(map(sum, times)) * 1e6,
        decision=statistics.fmean(decision for _, decision in times) * 1e6,
        worst=max(map(sum, times)) * 1e6,
        bytes=memory(lambda: Candidates((Pool.STATE,), price()), list(indexed)) / prefixes,
        eff_weight=eff_weight,
        scan=scan,
        staircase=statistics.fmean(steps_of_staircase),
    )


def measured_value(prefixes: int, steps: int) -> Measured:
    candidates = ValueCandidates()
    history = History(prefixes, candidates)
    # The history that was made up has too many young prefixes for one that goes on like this.
    for _ in range(min(2 * prefixes, SETTLING_STEPS)):
        history.step(0.0)
    gc.collect()
    times = [history.step(0.0) for _ in range(steps)]
    cached = [prefix for prefix in history.recent if prefix.has_state]
    return Measured(
        prefixes,
        3,
        step=statistics.fmean(map(sum, times)) * 1e6,
        decision=statistics.fmean(decision for _, decision in times) * 1e6,
        worst=max(map(sum, times)) * 1e6,
        bytes=memory(ValueCandidates, cached) / prefixes,
    )


def staircase(candidates: Candidates, efficiency: Callable[[CachedPrefix], float]) -> int:
    """Candidates that no other one undercuts in both coordinates; equal ones count once."""
    length, lowest = 0, float("inf")
    for _, low in sorted((p.last_access, efficiency(p)) for p in candidates):
        if low < lowest:
            length, lowest = length + 1, low
    return length


def memory(
    make: Callable[[], Candidates | ValueCandidates], prefixes: Sequence[CachedPrefix]
) -> int:
    """Bytes that an index of ``prefixes`` takes, the prefixes themselves not counted."""
    gc.collect()
    tracemalloc.start()
    index = make()
    for prefix in prefixes:
        index.put(prefix)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size


if __name__ == "__main__":
    main()
