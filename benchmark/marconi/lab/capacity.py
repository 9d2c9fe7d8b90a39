"""Finds how much memory makes a trace starved, middling or ample, by stock LRU's own result.

A capacity is the memory at which the base's stock LRU (Rust core where there is one, SGLang's
default split of 0.9 bytes of states to a byte of KV, one request at a time) saves a given share of
the FLOPs that a cache without eviction saves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from joblib import Memory

from lab.costs import DEFAULT_RATIO
from lab.run import simulate
from lab.spec import RunSpec, with_memory

#: Share of the infinite cache's saved FLOPs that stock LRU reaches.
CAPACITIES: dict[str, float] = {"starved": 0.33, "middle": 0.66, "ample": 0.95}

#: A size is good enough within this distance of the share, or when sizes differ by less than this.
TOLERANCE, FINEST_STEP = 0.005, 1.01
_LARGEST_GIB = 1 << 20


def find_capacities(spec: RunSpec, names: list[str], cache: Path) -> dict[str, float]:
    """GiB of memory at each named capacity of ``spec``'s trace, model, block, limit and admission.

    Args:
        cache: folder in which LRU's results are kept, so that a second search costs nothing.

    Raises:
        ValueError: the trace has nothing to reuse, so that no capacity is defined.
    """
    measure = Memory(cache, verbose=0).cache(_saved, ignore=["path"])
    base = replace(spec, policy="", capacity=None, concurrency=None, labels={}, engine="sglang")
    digest = hashlib.blake2b(Path(spec.trace).read_bytes(), digest_size=12).hexdigest()
    identity: dict[str, Any] = {
        **{"digest": digest, "model": spec.model, "block": spec.block, "format": spec.format},
        **{"limit": spec.limit, "admission": spec.admission, "tokenizer": spec.tokenizer},
        "base": spec.base,
        "path": spec.trace,
    }

    def share(gib: float) -> float:
        return float(measure(policy="lru", gib=gib, **identity)) / most

    most = float(measure(policy="infinite", gib=1.0, **identity))
    if most <= 0:
        raise ValueError(f"{base.trace}: nothing is ever reused, so it has no capacities")
    return {name: _search(share, CAPACITIES[name]) for name in names}


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
    )
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
