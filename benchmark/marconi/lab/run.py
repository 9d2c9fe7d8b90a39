"""One run: a trace, a policy, a model, pools of one size; its result is one row."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from policies import PolicyContext, check_policy
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.marconi.config import ADMISSION_CHOICES
from tqdm import tqdm
from traces import Request

from lab.bases import BASES
from lab.costs import in_time, load_cost
from lab.hints import check_hints, hinted
from lab.paper_world import paper_config, simulate_paper
from lab.served import BlockCost
from lab.shadow_world import shadow_cache, simulate_shadow
from lab.spec import DEFAULT_BASE, RunSpec
from lab.totals import Totals


def policy_context(spec: RunSpec, cost: ModelCost) -> PolicyContext:
    """What a policy may know before the first request."""
    return PolicyContext(
        cost=BlockCost(cost, spec.block),
        seconds=BlockCost(in_time(cost, spec.service.attention_time), spec.block),
        block_tokens=spec.block,
        kv_tokens=spec.kv_tokens // spec.block,
        state_slots=spec.state_slots,
        requests=spec.requests,
        admission=spec.admission,
        running=spec.concurrency or 1,
        elastic=spec.memory == "elastic",
        chained=spec.engine == "shadow",
    )


def check_spec(spec: RunSpec) -> None:
    """Refuse a spec that cannot run, before anything runs.

    Raises:
        OSError, ValueError, KeyError: its trace, policy, model or sizes.
    """
    if not Path(spec.trace).is_dir():
        Path(spec.trace).open("rb").close()
    if spec.host is not None and (spec.engine == "paper" or spec.base != DEFAULT_BASE):
        raise ValueError(
            f"--host-share is {spec.host.share:g} but --engine is {spec.engine} and --base "
            f"{spec.base}; allowed with it are --engine sglang and shadow, and --base "
            f"{DEFAULT_BASE}"
        )
    if spec.host is not None and spec.engine == "shadow" and spec.memory != "static":
        raise ValueError(
            f"--host-share is {spec.host.share:g} but --memory is {spec.memory}; allowed with "
            f"--engine shadow is --memory static"
        )
    if spec.base != DEFAULT_BASE and spec.engine != "sglang":
        raise ValueError(
            f"--base is {spec.base} but --engine is {spec.engine}; allowed is --engine sglang"
        )
    if not 0 <= spec.measure_from < 1:
        raise ValueError(
            f"--measure-from is {spec.measure_from}; allowed are shares of the trace from 0 to "
            f"less than 1"
        )
    made = check_hints(spec.hints) is not None
    if made and (spec.base != DEFAULT_BASE or spec.engine == "paper"):
        raise ValueError(
            f"--hints is {spec.hints} but --engine is {spec.engine} and --base {spec.base}; "
            f"allowed with it are --engine sglang and shadow, and --base {DEFAULT_BASE}"
        )
    if spec.policy.partition(":")[0] == "clairvoyant" and (
        spec.active is not None or spec.schedule != "fcfs"
    ):
        raise ValueError(
            f"--policy is {spec.policy!r}, which knows the order of the trace; allowed with it are "
            f"--arrivals trace and --schedule fcfs"
        )
    if spec.engine == "paper":
        if spec.measure_from:
            raise ValueError(
                f"--measure-from is {spec.measure_from} but --engine is paper, which counts whole "
                f"traces only; allowed with it is 0"
            )
        if spec.memory == "elastic":
            raise ValueError(
                "--memory is elastic but --engine is paper, whose memory always is; allowed are "
                "--engine sglang and shadow"
            )
        paper_config(spec)
        return
    cost = load_cost(spec.model)
    check_policy(spec.policy)
    if spec.admission not in ADMISSION_CHOICES:
        allowed = ", ".join(ADMISSION_CHOICES)
        raise ValueError(f"--admission is {spec.admission!r}; allowed are {allowed}")
    for flag, value in (
        ("--block", spec.block),
        ("--running", 1 if spec.concurrency is None else spec.concurrency),
        ("--kv-tokens", spec.kv_tokens),
        ("--state-slots", spec.state_slots),
    ):
        if value < 1:
            raise ValueError(f"{flag} is {value}; allowed is 1 or more")
    context = policy_context(spec, cost)
    if spec.engine == "shadow":
        shadow_cache(spec, context)
    else:
        BASES[spec.base].load().check_world(spec, context)


def simulate(spec: RunSpec, *, progress: bool = False) -> dict[str, Any]:
    """Run ``spec`` on the caches that serve, and return its row.

    Raises:
        OSError, ValueError, KeyError: a trace, policy or model that cannot be used.
    """
    if spec.engine == "paper":
        return simulate_paper(spec)
    if spec.engine == "shadow":
        return simulate_shadow(spec, policy_context(spec, load_cost(spec.model)))
    torch.set_num_threads(1)
    started = time.perf_counter()
    cost = load_cost(spec.model)
    totals = Totals(
        cost,
        spec.block,
        first=spec.first_measured(),
        service=spec.service,
    )
    requests = spec.requests()
    with BASES[spec.base].load().open_world(spec, policy_context(spec, cost)) as world:
        for served in world.serve(hinted(_watched(spec, requests, progress), spec)):
            totals.add(served)
    stats = world.stats
    return {
        **spec.columns(),
        **totals.as_row(),
        "copied_bytes": world.copied_bytes,
        "corrupt_lines": requests.skipped,
        "evictions": {} if stats is None else stats.as_dict()["victims"],
        "states_taken_back": 0 if stats is None else stats.states_taken_back,
        "fallbacks_to_lru": 0 if stats is None else stats.fallbacks.total(),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _watched(spec: RunSpec, requests: Iterable[Request], progress: bool) -> Iterable[Request]:
    name = f"{Path(spec.trace).name} {spec.policy}"
    watched: Iterable[Request] = tqdm(
        requests, desc=name, unit="request", mininterval=2, disable=not progress
    )
    return watched
