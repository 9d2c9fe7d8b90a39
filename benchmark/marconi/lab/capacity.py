"""Finds how much memory makes a trace starved, middling or ample, by stock LRU's own result.

A capacity is the memory at which the base's stock LRU (Rust core where there is one, SGLang's
default split of 0.9 bytes of states to a byte of KV, one request at a time) saves a given share of
the FLOPs that a cache without eviction saves. ``infinite`` is no share of it: it holds the trace.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from joblib import Memory
from policies.infinite import STATES_RUNNING, distinct_blocks
from traces.files import trace_files

from lab.costs import DEFAULT_RATIO, load_cost
from lab.run import policy_context, simulate
from lab.spec import Engine, RunSpec, with_memory

#: Share of the infinite cache's saved FLOPs that stock LRU reaches.
CAPACITIES: dict[str, float] = {"starved": 0.33, "middle": 0.66, "ample": 0.95}
#: The name of pools in which nothing is ever evicted.
INFINITE = "infinite"

#: A size is good enough within this distance of the share, or when sizes differ by less than this.
TOLERANCE, FINEST_STEP = 0.005, 1.01
_LARGEST_GIB = 1 << 20


def with_capacities(
    spec: RunSpec, names: list[str], cache: Path, ratio: float, engine: Engine
) -> list[RunSpec]:
    """The run at each named capacity, in the names' order; those but ``infinite`` are searched.

    Raises:
        ValueError: see :func:`find_capacities`.
    """
    searched = [name for name in names if name != INFINITE]
    found = find_capacities(spec, searched, cache, engine) if searched else {}
    sized = {name: with_memory(spec, gib, ratio) for name, gib in found.items()}
    if INFINITE in names:
        sized[INFINITE] = _unbounded(spec)
    return [replace(sized[name], capacity=name) for name in names]


def _unbounded(spec: RunSpec) -> RunSpec:
    """Pools that hold all that the trace ever leaves in a cache, as under policy ``infinite``."""
    context = policy_context(spec, load_cost(spec.model))
    blocks, longest = distinct_blocks(context)
    return replace(
        spec,
        kv_tokens=(blocks + context.running * longest) * spec.block,
        state_slots=blocks + context.running * STATES_RUNNING,
    )


def find_capacities(
    spec: RunSpec, names: list[str], cache: Path, engine: Engine = "sglang"
) -> dict[str, float]:
    """GiB of memory at each named capacity of ``spec``'s trace, model, block, limit and admission.

    Says on stderr what each size saves, as the search goes.

    Args:
        cache: folder in which LRU's results are kept, so that a second search costs nothing.
        engine: whose LRU is asked: the cache that serves, or its shadow, which is some ten times
            faster and near it.

    Raises:
        ValueError: the trace has nothing to reuse, so that no capacity is defined.
    """
    measure = Memory(cache, verbose=0).cache(_saved, ignore=["path"])
    base = replace(spec, policy="", capacity=None, concurrency=None, labels={}, engine=engine)
    identity: dict[str, Any] = {
        **{"digest": _digest(Path(spec.trace)), "model": spec.model, "block": spec.block},
        **{"format": spec.format, "limit": spec.limit, "admission": spec.admission},
        **{"tokenizer": spec.tokenizer, "base": spec.base, "time_unit": spec.time_unit},
        "engine": engine,
        "path": spec.trace,
    }

    @functools.cache
    def share(gib: float) -> float:
        found = float(measure(policy="lru", gib=gib, **identity)) / most
        _tell(spec, f"LRU with {gib:.3g} GiB saves {found:.1%} of what an endless cache does")
        return found

    _tell(spec, f"searching capacities {', '.join(names)} by engine {engine}")
    most = float(measure(policy=INFINITE, gib=1.0, **identity))
    if most <= 0:
        raise ValueError(f"{base.trace}: nothing is ever reused, so it has no capacities")
    return {name: _search(share, CAPACITIES[name]) for name in names}


def _tell(spec: RunSpec, text: str) -> None:
    print(f"{Path(spec.trace).name}: {text}", file=sys.stderr, flush=True)


def _digest(trace: Path) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for path in trace_files(trace) if trace.is_dir() else [trace]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _saved(
    *,
    digest: str,
    path: str,
    policy: str,
    gib: float,
    model: str,
    block: int,
    format: str,
    tokenizer: str | None,
    limit: int | None,
    admission: str,
    base: str,
    time_unit: str | None,
    engine: Engine,
) -> float:
    spec = RunSpec(
        trace=path,
        policy=policy,
        model=model,
        kv_tokens=0,
        state_slots=0,
        format=format,
        tokenizer=tokenizer,
        block=block,
        limit=limit,
        admission=admission,
        base=base,
        time_unit=time_unit,
        engine=engine,
        ledger=engine == "sglang",
    )
    if policy == INFINITE and engine == "shadow":
        return float(simulate(_unbounded(replace(spec, policy="lru")))["flops_saved"])
    return float(simulate(with_memory(spec, gib, DEFAULT_RATIO))["flops_saved"])


def _search(share: Callable[[float], float], target: float) -> float:
    """GiB, to three digits, where ``share``, which grows with memory, comes nearest to ``target``.

    It may jump over the target where a single slot more or less decides.
    """
    high = 1.0
    while share(high) < target:
        if high >= _LARGEST_GIB:
            raise ValueError(f"LRU does not save {target:.0%} of the FLOPs with {high:.0f} GiB")
        high *= 4
    low = high / 4
    while share(low) >= target and low > 1e-3:
        low /= 4
    distance = {gib: abs(share(gib) - target) for gib in (low, high)}
    while high / low > FINEST_STEP and min(distance.values()) > TOLERANCE:
        middle = _three_digits((low * high) ** 0.5)
        found = share(middle)
        distance[middle] = abs(found - target)
        low, high = (middle, high) if found < target else (low, middle)
    return min(distance, key=lambda gib: (distance[gib], gib))


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")
