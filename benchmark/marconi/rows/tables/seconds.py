"""A table of what weighing seconds instead of FLOPs does to prefills and to who waits."""

from __future__ import annotations

from rows.cells import CELLS
from rows.parts.load import LOOPS
from rows.parts.seconds import POLICIES
from rows.store import Rows
from rows.tables.common import markdown, memory, numbers, of_part, optional

_TITLES = {"lru": "LRU", "flops": "by FLOPs", "seconds": "by seconds"}
_MEASURES = {"seconds_saved": "saved, %", "ttft_mean_s": "TTFT mean, s", "ttft_p95_s": "P95, s"}


def weighed(rows: Rows) -> str:
    """Seconds saved, mean and P95 TTFT, under LRU and under policy 3 by both currencies."""
    of_part(rows, "seconds")
    lines = []
    for trace in LOOPS:
        for capacity, gib in CELLS[trace].items():
            line = [trace, memory(capacity, gib)]
            for measure in _MEASURES:
                for policy in POLICIES.values():
                    row = rows.by_id.get(f"seconds/{trace}/{capacity}/{policy}")
                    digits = 1 if measure == "seconds_saved" else 2
                    line += numbers({policy: optional(row, measure)}, digits=digits)
            lines.append(line)
    titles = [
        f"{measure}: {_TITLES[policy]}"
        for measure in _MEASURES.values()
        for policy in POLICIES.values()
    ]
    return markdown(["trace", "memory", *titles], lines, words=2)
