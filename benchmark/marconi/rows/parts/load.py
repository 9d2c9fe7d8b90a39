"""The part that serves traces with a queue: policies and orders of service under load."""

from __future__ import annotations

from collections.abc import Iterator

from rows.cells import CELLS, listed_sizes
from rows.part import Command, Found, Part, Record
from rows.parts.simulated import ONE_MEMORY, SHADOW_CODE, in_cells, saved, simulate
from rows.store import Row

#: Sessions of the closed loop, and the mean seconds that each thinks: one request runs at a time.
LOOPS = {
    "tau-airline": (48, "2"),
    "mini-swe-agent-a": (40, "5"),
    "sharegpt-a": (200, "20"),
    "claude-code-a": (24, "0"),
}
ORDERS = ("fcfs", "lpm", "hrrn", "shortest-prefill-first")
POLICIES = {"lru": "lru", "value:no-queue": "policy-3-no-queue", "value": "policy-3"}
REQUESTS = 1500


def closed_loop(trace: str, order: str) -> tuple[str, ...]:
    """What makes a server of 200 TFLOP/s and a closed loop of clients, in an order of service."""
    active, think = LOOPS[trace]
    return (
        *("--running", "1", "--schedule", order),
        *("--arrivals", "closed", "--active", str(active), "--think", think),
        *("--prefill-tflops", "200", "--prefill-ms", "20", "--decode-ms-per-token", "0"),
    )


def ttft_seconds(record: Record) -> dict[str, float]:
    """Mean and P95 of the modelled time to the first token, the wait included."""
    milliseconds = record["ttft_ms_modelled"]
    return {f"ttft_{name}_s": round(milliseconds[name] / 1000, 4) for name in ("mean", "p95")}


def _commands() -> Iterator[Command]:
    for trace in LOOPS:
        for order in ORDERS:
            yield simulate(
                *(trace, listed_sizes(CELLS[trace]), list(POLICIES), *ONE_MEMORY),
                *("--limit", str(REQUESTS), *closed_loop(trace, order)),
            )


def _rows(found: Found) -> list[Row]:
    rows: list[Row] = []
    for command in _commands():
        trace, order = command.out, command.words[command.words.index("--schedule") + 1]
        served = (one for one in found.get(trace, ()) if one["schedule"] == order)
        for cell, record in in_cells(served, CELLS[trace], POLICIES):
            load = record["load"]
            rows.append(
                {
                    "part": "load",
                    "id": f"load/{trace}/{cell['capacity']}/{order}/{cell['policy']}",
                    **{"trace": trace, "schedule": order, **cell},
                    **saved(record),
                    "queue_length": load["queue_length"],
                    "requests_per_second": load["requests_per_second"],
                    **ttft_seconds(record),
                    "longest_wait_s": round(load["longest_wait_ms"] / 1000, 4),
                    "measured": {"command": command.typed()},
                }
            )
    return rows


LOAD = Part(
    "load",
    "what policies save and how long requests wait, where there is a queue, by order of service",
    12,
    (*SHADOW_CODE, "python/sglang/srt/mem_cache/mamba_radix/waiting.py"),
    tuple(_commands()),
    _rows,
)
