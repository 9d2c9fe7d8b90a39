"""The table of what clients' hints are worth."""

from __future__ import annotations

from statistics import mean

from rows.cells import size_id
from rows.parts.hints import SEEDS, SIZES
from rows.store import Rows
from rows.tables.common import markdown, numbers, of_part


def hints(rows: Rows) -> str:
    """FLOPs saved without hints, with true ones, and with such as are wrong half of the time."""
    of_part(rows, "hints")
    lines = []
    for trace, gibs in SIZES.items():
        for gib in gibs:
            before = f"hints/{trace}/{size_id(gib)}"
            drawn = [rows.value(f"{before}/wrong-0-5-{seed}", "flops_saved") for seed in SEEDS]
            values = {
                "none": rows.value(f"{before}/none", "flops_saved"),
                "true": rows.value(f"{before}/true", "flops_saved"),
                "wrong": mean(drawn),
                "lowest": min(drawn),
            }
            lines.append([trace, f"{gib:g} GiB", *numbers(values)])
    titles = ["no hints", "`last`, true", "wrong half of the time", "the lowest draw"]
    return markdown(["trace", "memory", *titles], lines, words=2)
