"""Microseconds a tree operation: ours beside stock's two tree cores, interleaved in one run.

    python benchmark/marconi/tree_speed.py

Each cache holds conversations of four turns, 64 tokens a turn, a state at the end of each. Into
that a session is put, turn by turn, whose last prompt has the length of the row. Timed are

- *match*: the lookup of the last prompt, of which all but the last turn is cached;
- *insert*: caching that prompt, its state and its last turn's KV;
- *state*: a call that evicts one state;
- *KV leaf*: a call that evicts one KV leaf.

Figures are medians of CPU time; in brackets the ratio to stock's Rust core and to its Python core.
The caches take turns within every repeat, and each is built once a size.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import statistics
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from cpu_cache import CpuCache, server_context
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache
from sglang.srt.mem_cache.radix_cache import RadixKey

TURNS, TURN_TOKENS = 4, 64
VARIANTS: dict[str, dict[str, object]] = {
    "rust": {"core": "rust"},
    "python": {"core": "python"},
    "1": {"policy": 1, "core": "rust"},
    "2": {"policy": 2, "core": "rust"},
    "3": {"policy": 3, "core": "rust"},
    "1-python": {"policy": 1},
    "2-python": {"policy": 2},
    "3-python": {"policy": 3},
}
TITLES = {"rust": "stock, Rust core", "python": "stock, Python core"}
EVICTIONS = {"state": EvictParams(num_tokens=0, mamba_num=1), "KV leaf": EvictParams(num_tokens=1)}
OPERATIONS = ("match", "insert", *EVICTIONS)

#: Tokens of a prompt and the turns that it came in.
PROMPT_TURNS = {2048: 4, 32768: 16}

#: Microseconds by operation, prompt length (0: none) and variant.
Times = dict[tuple[str, int], dict[str, list[float]]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--prompts", type=int, nargs="+", default=list(PROMPT_TURNS))
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--caches", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args(argv)
    for tokens in options.prompts:
        if tokens <= 0 or tokens % (turns(tokens) * TURN_TOKENS):
            parser.error(
                f"--prompts has {tokens}; allowed are multiples of {turns(tokens) * TURN_TOKENS}"
            )
    # Waking a second thread for a few small tensors costs more than any operation.
    torch.set_num_threads(1)
    print("| nodes | µs to | " + " | ".join(map(title, options.caches)) + " |")
    print("|---|---" + "|---" * len(options.caches) + "|")
    with server_context(chunk=TURN_TOKENS):
        for nodes in options.nodes:
            times = measure(
                nodes, options.prompts, options.operations, options.caches, options.repeats
            )
            for line in rows(nodes, times):
                print(line, flush=True)


def turns(tokens: int) -> int:
    """In how many turns a session comes to a prompt of so many tokens."""
    return PROMPT_TURNS.get(tokens, TURNS)


def title(variant: str) -> str:
    policy, _, core = variant.partition("-")
    return TITLES.get(variant, f"policy {policy}" + f", {core.title()} core" * bool(core))


def measure(
    nodes: int,
    prompts: Sequence[int],
    operations: Sequence[str],
    variants: Sequence[str],
    repeats: int,
) -> Times:
    sessions = sum(prompts) if {"match", "insert"} & set(operations) else 0
    caches = {name: Filled(nodes, repeats * sessions, VARIANTS[name]) for name in variants}
    # A server's collector does not look at what has lived for long at every turn either.
    gc.collect()
    gc.freeze()
    times: Times = {}
    rng = random.Random(1)
    for _ in range(repeats):
        for tokens in prompts if sessions else ():
            for name in rng.sample(list(caches), len(caches)):
                for operation, taken in caches[name].session(tokens).items():
                    if operation in operations:
                        record(times, operation, tokens, name, taken)
        for operation in [name for name in EVICTIONS if name in operations]:
            for name in rng.sample(list(caches), len(caches)):
                cache = caches[name].cache.cache
                record(times, operation, 0, name, timed(cache.evict, EVICTIONS[operation])[0])
    gc.unfreeze()
    return times


def record(times: Times, operation: str, tokens: int, name: str, taken: float) -> None:
    times.setdefault((operation, tokens), defaultdict(list))[name].append(taken)


def rows(nodes: int, times: Times) -> Iterator[str]:
    order = {operation: place for place, operation in enumerate(OPERATIONS)}
    for operation, tokens in sorted(times, key=lambda row: (order[row[0]], row[1])):
        medians = {
            name: statistics.median(values) for name, values in times[operation, tokens].items()
        }
        what = f"evict one {operation}" if operation in EVICTIONS else f"{operation} {tokens:,}"
        cells = " | ".join(cell(name, medians) for name in VARIANTS if name in medians)
        yield f"| {nodes:,} | {what} | {cells} |"


def cell(name: str, medians: dict[str, float]) -> str:
    ratios = [f"{medians[name] / medians[stock]:.2f}" for stock in TITLES if stock in medians]
    if name in TITLES or not ratios:
        return f"{medians[name]:,.0f}"
    return f"{medians[name]:,.0f} ({' / '.join(ratios)})"


def timed(call: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    """Microseconds of this thread's CPU, and what the call returned."""
    start = time.thread_time_ns()
    result = call(*arguments)
    return (time.thread_time_ns() - start) / 1000, result


class Filled:
    """A cache with ``nodes`` states in its tree, and room for ``spare_tokens`` tokens more."""

    def __init__(self, nodes: int, spare_tokens: int, arguments: dict[str, object]) -> None:
        conversations = -(-nodes // TURNS)
        tokens = conversations * TURNS * TURN_TOKENS
        spare_states = spare_tokens // TURN_TOKENS
        self.cache = CpuCache(
            kv_tokens=tokens + spare_tokens,
            state_slots=nodes + spare_states,
            **arguments,  # type: ignore[arg-type]
        )
        self._fresh = itertools.count(1)
        # A full server's pools have few free slots, and what they do takes time by their number.
        slots = self.cache.alloc_kv(tokens + spare_tokens)
        states = self.cache.alloc_state(nodes + spare_states)
        assert slots is not None and states is not None
        self._slots, self._states = slots[tokens:], states[nodes:]
        length = TURNS * TURN_TOKENS
        for start, at in zip(range(0, tokens, length), range(0, nodes, TURNS), strict=True):
            prompt = self._prompt(length)
            for turn in range(min(TURNS, nodes - at)):
                end = (turn + 1) * TURN_TOKENS
                self.cache.cache.insert(
                    InsertParams(
                        key=RadixKey(prompt[:end]),
                        value=slots[start : start + end],
                        mamba_value=states[at + turn : at + turn + 1].clone(),
                        prev_prefix_len=turn * TURN_TOKENS,
                    )
                )

    def session(self, tokens: int) -> dict[str, float]:
        """Put a new session in; microseconds to match and to insert its last prompt."""
        prompt = self._prompt(tokens)
        step = tokens // turns(tokens)
        for end in range(step, tokens, step):
            self._turn(prompt[:end])
        if isinstance(self.cache.cache, MambaRadixCache):
            # What the turns before left to be noted would have been long ago.
            self.cache.cache.marconi_state()
        return self._turn(prompt)

    def _turn(self, prompt: array[int]) -> dict[str, float]:
        cache = self.cache.cache
        request = SimpleNamespace(origin_input_ids=prompt, session=None)
        params = MatchPrefixParams(key=RadixKey(prompt), req=request)
        match, found = timed(cache.match_prefix, params)
        held = found.device_prefix_len
        lock = cache.lock(found.last_device_node)
        kv, self._slots = self._slots.tensor_split([len(prompt) - held])
        state, self._states = self._states.tensor_split([1])
        insertion = InsertParams(
            key=RadixKey(prompt),
            value=torch.cat([cache.path_device_indices(found.last_device_node)[:held], kv]),
            mamba_value=state.clone(),
            prev_prefix_len=held,
        )
        insert, _ = timed(cache.insert, insertion)
        cache.unlock(lock)
        return {"match": match, "insert": insert}

    def _prompt(self, tokens: int) -> array[int]:
        first = next(self._fresh) << 20
        return array("q", range(first, first + tokens))


if __name__ == "__main__":
    main()
