"""Microseconds a tree operation: ours beside stock's two tree cores, interleaved in one run.

    python benchmark/marconi/tree_speed.py

Each cache holds conversations of four turns, 64 tokens a turn, a state at the end of each. Into
that a session is put, turn by turn, whose last prompt has the length of the row. Timed are

- *match*: the lookup of the last prompt, of which all but the last turn is cached;
- *insert*: caching that prompt, its state and its last turn's KV;
- *unlock*: letting go of that prompt's path, when Marconi tells its policy what changed and hashes
  what left, which it puts off while a request waits for memory;
- *state*: a call that evicts one state, whatever the policy takes for it;
- *KV leaf*: a call that evicts one KV leaf.

Under *state* LRU and policy 3 take states that lie inside a path, and policy 2 mostly leaves, whose
KV goes too: that is more work in SGLang's own code. Two rows more are like for like:

- *inner state*: conversations end with a turn of 256 tokens, so that under every policy a state
  inside a path goes, and its KV stays;
- *leaf's state*: conversations and sessions of one turn, so that every victim is a leaf that goes
  whole.

``--mode`` chooses what the caches are: two pools (``static``), one memory for states and KV
(``unified``), two pools under judicious admission (``judicious``; stock does without) or above a
host tier that victims are written back to (``hicache``; the slots are counted, no bytes copied).
Beside the first only the first rows are timed. In one memory *room for a state* and *room for a
token* are calls that evict until an allocation fits which is short by that: stock gives KV leaves
then, and the policies whatever they order lowest.

Each cache evicts right after sessions of its own, so that all find their caches equally cold; each
kind of eviction has its own session before it, as long as there are as many lengths of prompts. All
that is timed ran ``--warm-up`` times before, on sessions of the first length, as the interpreter
takes some calls to specialise its code. Figures are medians of CPU time; in brackets the ratio to
stock's Rust core and to its Python core. The caches take turns within every repeat, and each is
built once a size and kind of conversation.
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
from lab.cpu_cache import FULL, MAMBA, CpuCache, server_context
from lab.host_tier import HostTier
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
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
ONE_STATE, ONE_LEAF = EvictParams(num_tokens=0, mamba_num=1), EvictParams(num_tokens=1)
EVICTIONS = {
    "state": ONE_STATE,
    "inner state": ONE_STATE,
    "leaf's state": ONE_STATE,
    "KV leaf": ONE_LEAF,
    "room for a state": ONE_STATE,
    "room for a token": ONE_LEAF,
    "state from the host": ONE_STATE,
    "KV leaf from the host": ONE_LEAF,
}
OPERATIONS = ("match", "insert", "unlock", *EVICTIONS)
#: What a cache is made with.
MODES: dict[str, dict[str, object]] = {
    "static": {},
    "unified": {"elastic": True},
    "judicious": {"options": {"marconi_admission": "judicious"}},
    "hicache": {"lower_tier": LowerTier.HOST},
}

#: Tokens of each turn of the conversations that a cache is filled with, and what is timed there.
STATIC: dict[tuple[int, ...], tuple[str, ...]] = {
    (TURN_TOKENS,) * TURNS: ("match", "insert", "unlock", "state", "KV leaf"),
    (TURN_TOKENS,) * (TURNS - 1) + (4 * TURN_TOKENS,): ("inner state",),
    (TURN_TOKENS,): ("leaf's state",),
}
FILLINGS: dict[str, dict[tuple[int, ...], tuple[str, ...]]] = {
    "static": STATIC,
    "unified": {
        (TURN_TOKENS,) * TURNS: (
            "match",
            "insert",
            "unlock",
            "room for a state",
            "room for a token",
        )
    },
    "judicious": {(TURN_TOKENS,) * TURNS: STATIC[(TURN_TOKENS,) * TURNS]},
    "hicache": {
        (TURN_TOKENS,) * TURNS: STATIC[(TURN_TOKENS,) * TURNS],
        # What it is filled with goes to the host.
        (TURN_TOKENS,) * 2: ("state from the host", "KV leaf from the host"),
    },
}

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
    parser.add_argument("--mode", choices=list(MODES), default="static")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--caches", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=20, help="repeats before, not timed")
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
            times: Times = {}
            for filling, timed_there in FILLINGS[options.mode].items():
                operations = [name for name in timed_there if name in options.operations]
                if operations:
                    caches = filled_caches(nodes, filling, options)
                    if any(name.endswith("the host") for name in operations):
                        for filled in caches.values():
                            filled.go_to_host()
                    measure(times, caches, operations, options)
            for line in rows(nodes, times):
                print(line, flush=True)


def turns(tokens: int) -> int:
    """In how many turns a session comes to a prompt of so many tokens."""
    return PROMPT_TURNS.get(tokens, TURNS)


def title(variant: str) -> str:
    policy, _, core = variant.partition("-")
    return TITLES.get(variant, f"policy {policy}" + f", {core.title()} core" * bool(core))


def filled_caches(
    nodes: int, filling: Sequence[int], options: argparse.Namespace
) -> dict[str, Filled]:
    spare_tokens = options.warm_up * options.prompts[0]
    spare_tokens += options.repeats * sum(options.prompts)
    return {
        name: Filled(nodes, filling, spare_tokens, {**MODES[options.mode], **VARIANTS[name]})
        for name in options.caches
    }


def measure(
    times: Times,
    caches: dict[str, Filled],
    operations: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """Add to ``times`` what each operation takes in each cache."""
    # A server's collector does not look at what has lived for long at every turn either.
    gc.collect()
    gc.freeze()
    rng = random.Random(1)
    evictions = [name for name in EVICTIONS if name in operations]
    for _ in range(options.warm_up):
        for filled in caches.values():
            filled.session(options.prompts[0])
            for operation in evictions:
                filled.evict(operation)
    for _ in range(options.repeats):
        for name in rng.sample(list(caches), len(caches)):
            filled = caches[name]
            for place, tokens in enumerate(options.prompts):
                for operation, taken in filled.session(tokens).items():
                    if operation in operations:
                        record(times, operation, tokens, name, taken)
                for operation in evictions[place :: len(options.prompts)]:
                    taken, _ = timed(filled.evict, operation)
                    record(times, operation, 0, name, taken)
    gc.unfreeze()


def record(times: Times, operation: str, tokens: int, name: str, taken: float) -> None:
    times.setdefault((operation, tokens), defaultdict(list))[name].append(taken)


def rows(nodes: int, times: Times) -> Iterator[str]:
    order = {operation: place for place, operation in enumerate(OPERATIONS)}
    for operation, tokens in sorted(times, key=lambda row: (order[row[0]], row[1])):
        medians = {
            name: statistics.median(values) for name, values in times[operation, tokens].items()
        }
        article = "a" if operation == "leaf's state" else "one"
        what = f"{operation} {tokens:,}" if tokens else operation
        if tokens == 0 and not operation.startswith("room"):
            what = f"evict {article} {operation}"
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
    """A cache with ``nodes`` states in its tree, and room for ``spare_tokens`` tokens more.

    Args:
        filling: tokens of each turn of a conversation.
    """

    def __init__(
        self, nodes: int, filling: Sequence[int], spare_tokens: int, arguments: dict[str, object]
    ) -> None:
        ends = list(itertools.accumulate(filling))
        whole, rest = divmod(nodes, len(filling))
        tokens = whole * ends[-1] + (ends[rest - 1] if rest else 0)
        spare_states = spare_tokens // TURN_TOKENS
        self.cache = CpuCache(
            kv_tokens=tokens + spare_tokens,
            state_slots=nodes + spare_states,
            **arguments,  # type: ignore[arg-type]
        )
        self._tier: HostTier | None = None
        if self.cache.lower_tier is not None:
            # Twice the device, as --hicache-ratio 2; no bytes are copied.
            self._tier = HostTier(
                self.cache,
                2 * (tokens + spare_tokens),
                2 * (nodes + spare_states),
                "write_back",
            )
        self._in_turns = len(filling) > 1
        self._fresh = itertools.count(1)
        # A full server's pools have few free slots, and what they do takes time by their number.
        slots = self.cache.alloc_kv(tokens + spare_tokens)
        states = self.cache.alloc_state(nodes + spare_states)
        assert slots is not None and states is not None
        self._slots, self._states = slots[tokens:], states[nodes:]
        prompts = [self._prompt(ends[-1]) for _ in range(-(-nodes // len(ends)))]
        # Turn by turn, so that LRU too finds the first ones inside paths.
        for turn, end in enumerate(ends):
            for place, prompt in enumerate(prompts):
                at = place * len(ends) + turn
                if at < nodes:
                    self.cache.cache.insert(
                        InsertParams(
                            key=RadixKey(prompt[:end]),
                            value=slots[place * ends[-1] :][:end],
                            mamba_value=states[at : at + 1].clone(),
                            prev_prefix_len=end - filling[turn],
                        )
                    )

    def go_to_host(self) -> None:
        """Evict all from the device, a few at a time as a server does."""
        assert self._tier is not None
        cache = self.cache.cache
        while (tokens := int(cache.full_evictable_size())) > 0:
            cache.evict(EvictParams(num_tokens=min(tokens, 8 * TURN_TOKENS)))
            self._tier.complete()
            # A request lets go of what it held.
            nothing = cache.match_prefix(MatchPrefixParams(key=RadixKey(self._prompt(1))))
            cache.unlock(cache.lock(nothing.last_device_node))

    def evict(self, operation: str) -> None:
        cache, params = self.cache.cache, EVICTIONS[operation]
        if operation.endswith("the host"):
            cache.evict_host(1, MAMBA if params.mamba_num else FULL)
        elif operation.startswith("room"):
            cache.evict_for_alloc(params)
        else:
            cache.evict(params)

    def session(self, tokens: int) -> dict[str, float]:
        """Put a new session in; microseconds of each step of its last prompt."""
        prompt, self._owner = self._prompt(tokens), SimpleNamespace()
        step = tokens // (turns(tokens) if self._in_turns else 1)
        for end in range(step, tokens, step):
            self._turn(prompt[:end])
        return self._turn(prompt)

    def _turn(self, prompt: array[int]) -> dict[str, float]:
        cache = self.cache.cache
        request = SimpleNamespace(origin_input_ids=prompt, session=None)
        params = MatchPrefixParams(key=RadixKey(prompt), req=request)
        match, found = timed(self._match, params)
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
        insert, _ = timed(self._insert, insertion)
        unlock, _ = timed(cache.unlock, lock)
        return {"match": match, "insert": insert, "unlock": unlock}

    def _match(self, params: MatchPrefixParams) -> Any:
        """A lookup, and the use that comes of it when the request is admitted."""
        found = self.cache.cache.match_prefix(params)
        if isinstance(self.cache.cache, MambaRadixCache):
            self.cache.cache.use(found.best_match_node, params.req)
        return found

    def _insert(self, params: InsertParams) -> None:
        """An insert, and what admission makes of it."""
        cache = self.cache.cache
        result = cache.insert(params)
        admission = getattr(cache, "admission", None)
        if admission is not None:
            depth, made = len(params.key), not result.mamba_exist
            admission.follow(self._owner, result.last_device_node, depth, created=made)

    def _prompt(self, tokens: int) -> array[int]:
        first = next(self._fresh) << 20
        return array("q", range(first, first + tokens))


if __name__ == "__main__":
    main()
