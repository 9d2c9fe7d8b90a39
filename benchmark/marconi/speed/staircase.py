"""How many candidates does a decision of policy 2 look at on a real trace?

    python benchmark/marconi/staircase_length.py --trace FILE --memory-gib 5,17 --model NAME

The cost of a decision grows with the *staircase*: the candidates that no other one undercuts in
both last access and FLOPs saved per byte. This serves a trace to the shadow and counts them, and
all candidates, at every decision of either pool.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from statistics import fmean, quantiles

from lab.costs import DEFAULT_RATIO, load_cost
from lab.run import policy_context
from lab.shadow_world import ShadowWorld, shadow_cache
from lab.spec import RunSpec, with_memory
from sglang.srt.mem_cache.marconi.eviction.marconi import MarconiPolicy
from sglang.srt.mem_cache.marconi.eviction.savings import SurvivingSavings
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache
from traces import read_trace


class CountingPolicy(MarconiPolicy):
    """Policy 2, noting at each decision how many candidates there are and how many it looks at."""

    def __init__(self, savings: SurvivingSavings, eff_weight: float) -> None:
        super().__init__(savings, eff_weight)
        self.counts: list[tuple[int, int]] = []

    def victim(self, pool: Pool, now: int, excluding: Container[int] = ()) -> CachedPrefix | None:
        found = super().victim(pool, now, excluding)
        self.counts.append(self.candidates_and_steps(pool))
        return found


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_arguments(argv)
    print("| trace | memory, GiB | decisions | candidates, mean | k, mean | k, P99 | k, most |")
    print("|---|---|---|---|---|---|---|")
    for trace in options.trace:
        for gib in map(float, options.memory_gib.split(",")):
            try:
                counts = decisions(trace, gib, options)
            except (OSError, ValueError, KeyError) as error:
                print(f"staircase_length: {error}", file=sys.stderr)
                return 1
            print(row(trace, gib, counts), flush=True)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, nargs="+", required=True)
    parser.add_argument("--memory-gib", required=True, help="both pools, comma-separated")
    parser.add_argument("--model", required=True, help="a known name, or a config.json")
    parser.add_argument("--eff-weight", type=float, default=0.5)
    parser.add_argument("--limit", type=int, help="only so many requests")
    return parser.parse_args(argv)


def decisions(trace: Path, gib: float, options: argparse.Namespace) -> list[tuple[int, int]]:
    """Candidates and steps of the staircase at each decision.

    Raises:
        OSError, ValueError, KeyError: a trace or model that cannot be used.
    """
    cost = load_cost(options.model)
    with trace.open("rb"):
        block = int(read_trace(trace).block)
    spec = with_memory(
        RunSpec(
            trace=str(trace),
            policy="lru",
            model=options.model,
            kv_tokens=0,
            state_slots=0,
            engine="shadow",
            block=block,
            limit=options.limit,
        ),
        gib,
        DEFAULT_RATIO,
    )
    context = policy_context(spec, cost)
    policy = CountingPolicy(SurvivingSavings(context.cost), options.eff_weight)
    world = ShadowWorld(ShadowCache(shadow_cache(spec, context).shape, policy), block)
    for request in spec.requests():
        world.serve(request)
    return policy.counts


def row(trace: Path, gib: float, counts: Sequence[tuple[int, int]]) -> str:
    name = f"| {trace.name.partition('.')[0]} | {gib:g} | {len(counts):,} |"
    if len(counts) < 2:
        return f"{name} | | | |"
    steps = [steps for _, steps in counts]
    candidates = fmean(candidates for candidates, _ in counts)
    high = quantiles(steps, n=100)[-1]
    return f"{name} {candidates:,.0f} | {fmean(steps):.1f} | {high:.0f} | {max(steps)} |"


if __name__ == "__main__":
    sys.exit(main())
