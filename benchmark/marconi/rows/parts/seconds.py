"""The part that weighs seconds instead of FLOPs: what a server under load gains by it."""

from __future__ import annotations

from collections.abc import Iterator

from rows.cells import CELLS, listed_sizes
from rows.part import Command, Found, Part, percent
from rows.parts.load import LOOPS, REQUESTS, closed_loop, ttft_seconds
from rows.parts.simulated import ONE_MEMORY, SHADOW_CODE, in_cells, simulate
from rows.store import Row

POLICIES = {"lru": "lru", "value": "flops", "value:seconds": "seconds"}
#: Time of a FLOP of attention. FLOPs are counted as the square of the length, of which a causal
#: kernel computes half; and that runs at about twice the rate of a mixture of experts.
ATTENTION_TIME = 0.25


def _commands() -> Iterator[Command]:
    for trace in LOOPS:
        yield simulate(
            *(trace, listed_sizes(CELLS[trace]), list(POLICIES), *ONE_MEMORY),
            *("--limit", str(REQUESTS), *closed_loop(trace, "fcfs")),
            *("--attention-time", f"{ATTENTION_TIME:g}"),
        )


def _rows(found: Found) -> list[Row]:
    rows: list[Row] = []
    for command in _commands():
        trace = command.out
        for cell, record in in_cells(found.get(trace, ()), CELLS[trace], POLICIES):
            rows.append(
                {
                    "part": "seconds",
                    "id": f"seconds/{trace}/{cell['capacity']}/{cell['policy']}",
                    **{"trace": trace, **cell},
                    "seconds_saved": percent(record["seconds_saved"]),
                    **ttft_seconds(record),
                    "measured": {"command": command.typed()},
                }
            )
    return rows


SECONDS = Part(
    "seconds",
    "what weighing seconds instead of FLOPs saves, where attention's take less time",
    4,
    SHADOW_CODE,
    tuple(_commands()),
    _rows,
)
