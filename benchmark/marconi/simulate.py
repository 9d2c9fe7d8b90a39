"""What would a policy have saved on a trace with this much memory? Asked of the product's cache.

    python benchmark/marconi/simulate.py --trace FILE... --policy lru,server:2:0.5 \\
        --model Qwen3-Next-80B-A3B-Instruct --memory-gib 13

Policies are listed by ``--help``. One JSON row a run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import policies
import torch
from cpu_cache import CpuCache, server_context
from policies import CacheArguments, PolicyContext, PolicyError
from replay_cache import BlockCost, Replay
from sglang.srt.marconi_utils import ModelCost, cost_by_name, cost_from_config
from tqdm import tqdm
from traces import read_trace

DEFAULT_RATIO = 0.9


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_arguments(argv)
    torch.set_num_threads(1)
    cost = load_cost(options.model)
    kv_tokens, state_slots = pool_sizes(options, cost)
    for trace in options.trace:
        for policy in options.policy.split(","):
            row = simulate(trace, policy, cost, kv_tokens, state_slots, options)
            line = json.dumps(row)
            print(line, flush=True)
            if options.out is not None:
                with options.out.open("a") as out:
                    out.write(line + "\n")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"policies:\n{policies.policy_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trace", type=Path, nargs="+", required=True)
    parser.add_argument("--policy", default="lru,server:2", help="comma-separated")
    parser.add_argument("--model", required=True, help="a known name, or a config.json")
    parser.add_argument("--kv-tokens", type=int, help="KV pool, in tokens")
    parser.add_argument("--state-slots", type=int, help="state pool, in states")
    parser.add_argument("--memory-gib", type=float, help="both pools together, in GiB")
    parser.add_argument("--mamba-full-memory-ratio", type=float, default=DEFAULT_RATIO)
    parser.add_argument("--block", type=int, default=64, help="tokens a block of the trace")
    parser.add_argument("--limit", type=int, help="only so many requests")
    parser.add_argument("--out", type=Path, help="append rows to this file too")
    return parser.parse_args(argv)


def load_cost(model: str) -> ModelCost:
    """A model's cost by name, or from a ``config.json``."""
    path = Path(model)
    if path.is_file():
        return cost_from_config(json.loads(path.read_text()), name=path.stem)
    return cost_by_name(model)


def pool_sizes(options: argparse.Namespace, cost: ModelCost) -> tuple[int, int]:
    """Tokens and states, as given, or from a budget in bytes split by SGLang's ratio.

    Raises:
        SystemExit: neither pool sizes nor a budget were given.
    """
    if options.memory_gib is not None:
        budget = options.memory_gib * 2**30
        kv_bytes = budget / (1 + options.mamba_full_memory_ratio)
        return (
            int(kv_bytes / cost.kv_bytes_per_token),
            int((budget - kv_bytes) / cost.state_bytes),
        )
    if options.kv_tokens is None or options.state_slots is None:
        sys.exit("give --memory-gib, or both --kv-tokens and --state-slots")
    return options.kv_tokens, options.state_slots


def cache_arguments(policy: str, context: PolicyContext) -> CacheArguments:
    """What to make the cache with for a policy's name.

    Raises:
        SystemExit: an unknown policy.
    """
    try:
        return policies.cache_arguments(policy, context)
    except PolicyError as error:
        sys.exit(str(error))


def simulate(
    trace: Path,
    policy: str,
    cost: ModelCost,
    kv_tokens: int,
    state_slots: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One run, as a row of the results."""
    block = options.block
    started = time.perf_counter()
    totals = {"requests": 0, "hits": 0, "input": 0, "hit": 0, "unserved": 0}
    saved = needed = 0
    context = PolicyContext(
        cost=BlockCost(cost, block),
        block_tokens=block,
        kv_tokens=kv_tokens // block,
        state_slots=state_slots,
        requests=lambda: read_trace(trace, limit=options.limit),
    )
    arguments = cache_arguments(policy, context)
    begin = getattr(arguments.policy, "begin", None)
    with server_context(chunk=1, max_states_per_path=arguments.max_states_per_path):
        cache = CpuCache(**arguments.for_cache(context))
        replay = Replay(cache, block)
        requests = read_trace(trace, limit=options.limit)
        progress = tqdm(requests, desc=f"{trace.name} {policy}", unit="request", mininterval=2)
        for index, request in enumerate(progress):
            if begin is not None:
                begin(index, request.prompt_ids, request.output_ids)
            served = replay.serve(request)
            totals["requests"] += 1
            totals["hits"] += served.hit_tokens > 0
            totals["input"] += served.input_tokens
            totals["hit"] += served.hit_tokens
            totals["unserved"] += not served.served
            saved += cost.flops(served.hit_tokens)
            needed += cost.flops(served.input_tokens)
        cache.cache.sanity_check()
    stats = getattr(cache.cache, "stats", None)
    lost = {} if stats is None else {reason: n * block for reason, n in stats.lost_tokens.items()}
    return {
        "trace": trace.name,
        "policy": policy,
        "model": cost.name,
        "kv_tokens": kv_tokens,
        "state_slots": state_slots,
        "admission": "sglang",
        "requests": totals["requests"],
        "unserved": totals["unserved"],
        "input_tokens": totals["input"],
        "token_hit_rate": totals["hit"] / max(totals["input"], 1),
        "request_hit_rate": totals["hits"] / max(totals["requests"], 1),
        "flops_saved": saved / max(needed, 1),
        "lost_tokens": {
            reason: lost.get(reason) for reason in ("state_evicted", "kv_evicted", "never_admitted")
        },
        "evictions": {} if stats is None else stats.as_dict()["victims"],
        "fallbacks_to_lru": 0 if stats is None else stats.fallbacks.total(),
        "seconds": round(time.perf_counter() - started, 1),
    }


if __name__ == "__main__":
    main()
