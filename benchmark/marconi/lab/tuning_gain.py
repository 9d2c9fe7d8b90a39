"""What does retrospective tuning save on a trace, beside every fixed weight?

    python benchmark/marconi/tuning_gain.py --trace FILE... --model NAME --memory-gib X

Simulated on block hashes, one request at a time, with the schedule, the replays and the choice that
the server makes. FLOPs saved are counted from the first tuned request on, for all alike; an answer
takes effect when the server would first ask for it. One JSON row a trace.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.marconi.advice.load.served import CHUNK_TOKENS, TRACK_TOKENS
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.eviction.registry import reweight
from sglang.srt.mem_cache.marconi.tuning.block_hashes import BlockHasher
from sglang.srt.mem_cache.marconi.tuning.events import Began, Ended
from sglang.srt.mem_cache.marconi.tuning.retrospect import Retrospect
from sglang.srt.mem_cache.marconi.tuning.schedule import Schedule, Step
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from sglang.srt.mem_cache.marconi.tuning.weights import EFF_WEIGHTS, weighted_policy
from traces import read_trace

from lab.costs import load_cost, split_memory


@dataclass(frozen=True)
class Served:
    """One request of the trace, hashed."""

    began: Began
    ended: Ended


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, nargs="+", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--kv-tokens", type=int)
    parser.add_argument("--state-slots", type=int)
    parser.add_argument("--memory-gib", type=float)
    parser.add_argument("--mamba-full-memory-ratio", type=float, default=0.9)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--pools", default="both", help="both or state")
    parser.add_argument("--interval", type=int, default=500)
    parser.add_argument("--multiplier", type=float, default=5)
    options = parser.parse_args(argv)
    cost = load_cost(options.model)
    kv_tokens, state_slots = options.kv_tokens, options.state_slots
    if options.memory_gib is not None:
        ratio = options.mamba_full_memory_ratio
        kv_tokens, state_slots = split_memory(options.memory_gib, ratio, cost)
    elif kv_tokens is None or state_slots is None:
        parser.error("give --memory-gib, or both --kv-tokens and --state-slots")
    shape = ShadowShape(
        options.block,
        kv_tokens // options.block,
        state_slots,
        max(CHUNK_TOKENS // options.block, 1),
        max(TRACK_TOKENS // options.block, 1),
    )
    config = MarconiConfig.from_options(
        {
            "marconi_evict_policy": 2,
            "marconi_evict_pools": options.pools,
            "marconi_tuning_interval": options.interval,
            "marconi_bootstrap_multiplier": options.multiplier,
        }
    )
    assert config is not None
    for trace in options.trace:
        served = list(hashed(trace, options.block, options.limit))
        row = {"trace": trace.name, "kv_tokens": kv_tokens, "state_slots": state_slots}
        print(json.dumps(row | compare(served, shape, cost, config)), flush=True)


def hashed(trace: Path, block: int, limit: int | None) -> list[Served]:
    """The requests of a trace; outputs it does not know are taken as never seen again."""
    hasher, fresh = BlockHasher(1), itertools.count(1 << 40)
    found = []
    for run_id, request in enumerate(read_trace(trace, block=block, limit=limit)):
        prompt = list(request.prompt_ids[: request.input_length // block])
        count = (request.input_length + request.output_length) // block - len(prompt)
        output = list(request.output_ids[:count])
        output += itertools.islice(fresh, max(count - len(output), 0))
        hashes = array("Q", hasher.extend(0, 0, prompt + output).tobytes())
        found.append(
            Served(
                Began(run_id, request.input_length, hashes[: len(prompt)]),
                Ended(run_id, hashes[len(prompt) :]),
            )
        )
    return found


def compare(
    served: Sequence[Served], shape: ShadowShape, cost: ModelCost, config: MarconiConfig
) -> dict[str, object]:
    """The tuned cache and every fixed weight on one trace."""
    started = time.process_time()
    tuned, adopted = tuned_savings(served, shape, cost, config)
    tuning_seconds = time.process_time() - started
    begin = adopted[0][0] if adopted else len(served)
    needed = sum(cost.flops(0, s.began.prompt_tokens) for s in served[begin:]) or 1
    fixed = {}
    for weight in EFF_WEIGHTS:
        cache = ShadowCache(shape, weighted_policy(config, weight, cost))
        fixed[weight] = [serve(cache, one, shape, cost) for one in served]
    after = {weight: sum(flops[begin:]) / needed for weight, flops in fixed.items()}
    best = max(after, key=lambda weight: after[weight])
    return {
        "requests": len(served),
        "first_tuned_request": begin,
        "tuned": sum(tuned[begin:]) / needed,
        "best_fixed": best,
        "best_fixed_saved": after[best],
        "first_fixed_saved": next(iter(after.values())),
        "tuned_of_best": sum(tuned[begin:]) / needed / after[best] if after[best] else 1.0,
        "adopted": adopted,
        "fixed": after,
        "tuning_cpu_seconds": round(tuning_seconds, 1),
    }


def tuned_savings(
    served: Sequence[Served], shape: ShadowShape, cost: ModelCost, config: MarconiConfig
) -> tuple[list[float], list[tuple[int, float]]]:
    """FLOPs saved request by request, and what was adopted when."""
    schedule = Schedule(config)
    retrospect = Retrospect(shape, cost, config)
    cache = ShadowCache(shape, weighted_policy(config, EFF_WEIGHTS[0], cost))
    saved, adopted, verdict = [], [], None
    for one in served:
        saved.append(serve(cache, one, shape, cost))
        retrospect.follow(one.began)
        retrospect.follow(one.ended)
        step = schedule.count(cache.evictions > 0)
        if step is Step.LOOK_BACK:
            verdict = retrospect.look_back()
        elif step is Step.ASK and verdict is not None:
            weight = EFF_WEIGHTS[verdict.chosen]
            reweight(cache.policy, weight)
            adopted.append((len(saved), weight))
            schedule.answered(gave_up=False)
            verdict = None
    return saved, adopted


def serve(cache: ShadowCache, one: Served, shape: ShadowShape, cost: ModelCost) -> float:
    """FLOPs that one request saves."""
    hit = cache.begin(one.began.run_id, one.began.hashes, one.began.prompt_tokens)
    cache.end(one.ended.run_id, one.ended.generated)
    return cost.flops(0, hit * shape.block_tokens)


if __name__ == "__main__":
    main()
