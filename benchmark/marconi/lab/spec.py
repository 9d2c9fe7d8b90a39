"""Everything that determines a run, as plain values."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sglang.srt.mem_cache.marconi.advice.load.service import ServiceTimes
from traces import TraceReader, read_trace
from traces.reader import Errors

from lab.costs import load_cost, split_memory

Engine = Literal["sglang", "shadow", "paper"]
Memory = Literal["static", "elastic"]

#: The release that the product is a plugin of.
DEFAULT_BASE = "0.5.23"


@dataclass(frozen=True)
class HostSpec:
    """The host's memory below the device's, split between KV and states as the device's is.

    Attributes:
        share: its size, as a multiple of the device's: ``--hicache-ratio``.
        write_policy: as ``--hicache-write-policy``.
        bytes_per_second: of a copy to the device, for which its request waits.
    """

    share: float
    write_policy: str = "write_through"
    bytes_per_second: float = 50e9


@dataclass(frozen=True)
class RunSpec:
    """Everything that determines a run; plain values, so that it travels to any worker.

    Attributes:
        trace: file, in any format that :func:`traces.read_trace` knows.
        block: tokens of one block of the trace, which is one slot of the simulated pools.
        tokenizer: of a trace that holds text.
        ledger: whether the shadow, too, follows which blocks could have hit (the cache that serves
            always does); without, the row has no ``token_hit_rate_bound``.
        time_unit: of the trace's times, where it is not the format's own.
        errors: whether a corrupt line is skipped and counted, or ends the run.
        kv_tokens, state_slots: the pools, in tokens and states.
        memory_gib, mamba_full_memory_ratio: the budget that they were split from, if one was given.
        capacity: its name, where it was found by one.
        concurrency: requests that run at a time; ``None``: one at a time, without a clock.
        active: sessions of a closed loop; ``None``: requests come by the trace's clock.
        think_seconds: mean time from an answer to its session's next request, in a closed loop.
        schedule: the order of service, a key of :data:`SCHEDULES`.
        labels: further columns of the row.
        memory: whether states and KV have pools of their own or share one budget of bytes.
        base: the release of SGLang whose cache runs, one of :data:`lab.bases.BASES`.
        measure_from: share of the trace's requests that are served before any is counted, in
            [0, 1).
        hints: whose, as ``--hints`` takes it.
        host: memory of the host below the device's; ``None``: the device's alone.
    """

    trace: str
    policy: str
    model: str
    kv_tokens: int
    state_slots: int
    engine: Engine = "sglang"
    format: str = "auto"
    block: int = 64
    tokenizer: str | None = None
    errors: Errors = "skip"
    admission: str = "sglang"
    memory_gib: float | None = None
    mamba_full_memory_ratio: float | None = None
    capacity: str | None = None
    concurrency: int | None = None
    service: ServiceTimes = field(default_factory=ServiceTimes)
    limit: int | None = None
    paper_mode: str = "corrected"
    labels: dict[str, str | float] = field(default_factory=dict)
    memory: Memory = "static"
    base: str = DEFAULT_BASE
    measure_from: float = 0.0
    active: int | None = None
    think_seconds: float = 0.0
    schedule: str = "fcfs"
    time_unit: str | None = None
    ledger: bool = True
    hints: str = "trace"
    host: HostSpec | None = None

    def key(self) -> str:
        """Identity of the run: equal for equal specs, and for no others."""
        values = asdict(self)
        # Rows of before there was a choice keep their identity.
        only = {
            **{"memory": "static", "base": DEFAULT_BASE, "measure_from": 0.0},
            **{"active": None, "think_seconds": 0.0, "schedule": "fcfs"},
            **{"time_unit": None, "ledger": True, "hints": "trace", "host": None},
        }
        for name, value in only.items():
            if values[name] == value:
                del values[name]
        if not values["service"]["batch_seconds"]:
            del values["service"]["batch_seconds"]
        if values["service"]["attention_time"] == 1:
            del values["service"]["attention_time"]
        if self.concurrency is not None:
            # Requests of one prefill batch were not served together before.
            values["batches"] = True
        text = json.dumps(values, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def requests(self) -> TraceReader:
        """The trace, from its beginning."""
        return read_trace(
            Path(self.trace),
            format=self.format,
            block=self.block,
            limit=self.limit,
            errors=self.errors,
            tokenizer=self.tokenizer,
            time_unit=self.time_unit,
            empty="fail",
        )

    def first_measured(self) -> int:
        """Place in the trace, from 0, of the first request that counts; may read the trace once."""
        if not self.measure_from:
            return 0
        return math.ceil(self.measure_from * sum(1 for _ in self.requests()))

    def columns(self) -> dict[str, Any]:
        """The part of a result row that is known before the run."""
        return {
            "run": self.key(),
            "engine": self.engine,
            "base": self.base,
            "trace": Path(self.trace).name,
            "policy": self.policy,
            "model": load_cost(self.model).name,
            "kv_tokens": self.kv_tokens,
            "state_slots": self.state_slots,
            "memory_gib": self.memory_gib,
            "mamba_full_memory_ratio": self.mamba_full_memory_ratio,
            "capacity": self.capacity,
            "admission": self.admission,
            "concurrency": self.concurrency,
            "active": self.active,
            "think_seconds": self.think_seconds,
            "schedule": self.schedule,
            "memory": self.memory,
            "measure_from": self.measure_from,
            "hints": self.hints,
            "host": None if self.host is None else asdict(self.host),
            "labels": self.labels,
        }


def with_memory(spec: RunSpec, gib: float, ratio: float) -> RunSpec:
    """The same run with pools of another size."""
    kv_tokens, state_slots = split_memory(gib, ratio, load_cost(spec.model))
    return replace(
        spec,
        kv_tokens=kv_tokens,
        state_slots=state_slots,
        memory_gib=gib,
        mamba_full_memory_ratio=ratio,
    )
