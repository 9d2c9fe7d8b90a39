"""Tables of a server under load: what the queue is worth, and who waits by order of service."""

from __future__ import annotations

from rows.cells import CELLS
from rows.parts.load import LOOPS, ORDERS
from rows.store import Row, Rows
from rows.tables.common import markdown, memory, numbers, of_part, optional

_COLUMNS = {"lru": "LRU", "policy-3-no-queue": "policy 3, queue unknown", "policy-3": "policy 3"}


def policies(rows: Rows) -> str:
    """FLOPs saved under fcfs and lpm, with and without knowing who waits."""
    of_part(rows, "load")
    orders = ORDERS[:2]
    lines = []
    for trace in LOOPS:
        for capacity, gib in CELLS[trace].items():
            known = {
                (order, policy): rows.by_id.get(f"load/{trace}/{capacity}/{order}/{policy}")
                for order in orders
                for policy in _COLUMNS
            }
            queue = optional(known["fcfs", "policy-3"], "queue_length")
            values = numbers({"queue": queue}, digits=0)
            for order in orders:
                saved = {p: optional(known[order, p], "flops_saved") for p in _COLUMNS}
                values += numbers(saved, saved)
            lines.append([trace, memory(capacity, gib), *values])
    titles = [f"{order}: {title}" for order in orders for title in _COLUMNS.values()]
    return markdown(["trace", "memory", "queue", *titles], lines, words=2)


def orders(rows: Rows) -> str:
    """Throughput and waits of each order of service, at the middle size."""
    of_part(rows, "load")
    lines = []
    for trace in LOOPS:
        for order in ORDERS:
            line = [trace, order]
            for policy in ("lru", "policy-3"):
                row = rows.by_id.get(f"load/{trace}/middle/{order}/{policy}")
                line += _times(row)
            lines.append(line)
    times = ("requests/s", "TTFT mean, s", "P95, s", "longest wait, s")
    titles = [f"{title}: {time}" for title in ("LRU", "policy 3") for time in times]
    return markdown(["trace", "order", *titles], lines, words=2)


def _times(row: Row | None) -> list[str]:
    rate = numbers({"rate": optional(row, "requests_per_second")}, digits=2)
    keys = ("ttft_mean_s", "ttft_p95_s", "longest_wait_s")
    return rate + numbers({key: optional(row, key) for key in keys}, digits=1)
