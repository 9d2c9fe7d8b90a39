"""Microseconds per eviction: ours beside stock's two tree cores, interleaved in one run.

    python benchmark/marconi/eviction_speed.py

Trees hold conversations of four turns, 64 tokens a turn, a state at the end of each. A row times
one call that evicts a single state, or a single KV leaf; what it evicted is put back untimed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from cpu_cache import CpuCache, server_context
from sglang.srt.mem_cache.base_prefix_cache import EvictParams

TURNS, TURN_TOKENS = 4, 64
VARIANTS: dict[str, dict[str, object]] = {
    "stock, Rust core": {"core": "rust"},
    "stock, Python core": {"core": "python"},
    "policy 1 (LRU)": {"policy": 1},
    "policy 2 (Marconi)": {"policy": 2},
}
KINDS = {"state": EvictParams(num_tokens=0, mamba_num=1), "KV leaf": EvictParams(num_tokens=1)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefixes", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args(argv)
    # Waking a second thread for a few small tensors costs more than any eviction.
    torch.set_num_threads(1)
    print("| cached prefixes | evict one | " + " | ".join(VARIANTS) + " |")
    print("|---|---" + "|---" * len(VARIANTS) + "|")
    with server_context(chunk=TURN_TOKENS):
        for prefixes in options.prefixes:
            for kind, medians in measure(prefixes, options.repeats).items():
                cells = " | ".join(f"{median:,.0f} µs" for median in medians.values())
                print(f"| {prefixes:,} | {kind} | {cells} |", flush=True)


def measure(prefixes: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median µs a call by kind and variant; variants take turns within every repeat."""
    caches = {name: filled(prefixes, **arguments) for name, arguments in VARIANTS.items()}
    times: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in caches} for kind in KINDS
    }
    rng = random.Random(1)
    for _ in range(repeats):
        for kind, request in KINDS.items():
            for name in rng.sample(list(caches), len(caches)):
                cache, refill = caches[name]
                times[kind][name].append(timed(partial(cache.cache.evict, request)))
                refill()
    return {
        kind: {name: statistics.median(values) for name, values in by_name.items()}
        for kind, by_name in times.items()
    }


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def filled(prefixes: int, **arguments: object) -> tuple[CpuCache, Callable[[], None]]:
    """A cache with ``prefixes`` states, and a function that adds one more conversation."""
    conversations = prefixes // TURNS
    room = conversations + 2 * TURNS * 100
    cache = CpuCache(
        kv_tokens=room * TURNS * TURN_TOKENS,
        state_slots=room * TURNS,
        **arguments,  # type: ignore[arg-type]
    )
    fresh = iter(range(1, 1 << 40))

    def converse() -> None:
        first = next(fresh) << 10
        for turn in range(1, TURNS + 1):
            cache.insert([first + i for i in range(turn * TURN_TOKENS)])

    for _ in range(conversations):
        converse()
    return cache, converse


if __name__ == "__main__":
    main()
