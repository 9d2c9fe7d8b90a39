"""A table of result rows: one line a trace and size, one column a policy, hit % / FLOPs saved %.

python benchmark/marconi/table.py results.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lab.spec import DEFAULT_BASE
from lab.sweep import finished_rows

Row = dict[str, Any]
#: Policies that know the future.
BOUNDS = ("infinite", "clairvoyant")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+")
    options = parser.parse_args(argv)
    print(table([row for path in options.results for row in finished_rows(path).values()]))


def table(rows: Iterable[Row]) -> str:
    """Markdown; the best token hit rate of a line, bounds apart, is bold."""
    cells: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault(_size(row), {})[row["policy"]] = row
    policies = list(dict.fromkeys(policy for line in cells.values() for policy in line))
    lines = [
        "| " + " | ".join(("trace", "capacity", *policies)) + " |",
        "|" + "---|" * (2 + len(policies)),
    ]
    for (trace, *size), line in cells.items():
        contest = [row["token_hit_rate"] for name, row in line.items() if name not in BOUNDS]
        best = max(contest, default=None)
        texts = [_cell(line.get(policy), best) for policy in policies]
        lines.append("| " + " | ".join((trace, " ".join(size), *texts)) + " |")
    return "\n".join(lines)


def _size(row: Row) -> tuple[str, ...]:
    memory = f"{row['memory_gib']:g} GiB" if row["memory_gib"] else f"{row['kv_tokens']} tokens"
    extra = [row["capacity"] or ""]
    if row.get("base", DEFAULT_BASE) != DEFAULT_BASE:
        extra.append(f"SGLang {row['base']}")
    if row["admission"] != "sglang":
        extra.append(row["admission"])
    if row.get("memory") == "elastic":
        extra.append("elastic")
    if row["concurrency"]:
        extra.append(f"{row['concurrency']} at a time")
    if row.get("measure_from"):
        extra.append(f"from {100 * row['measure_from']:g} % on")
    return row["trace"].partition(".")[0], ", ".join(filter(None, (*extra, memory)))


def _cell(row: Row | None, best: float | None) -> str:
    if row is None:
        return ""
    text = f"{100 * row['token_hit_rate']:.1f}/{100 * row['flops_saved']:.1f}"
    contested = row["policy"] not in BOUNDS
    return f"**{text}**" if contested and row["token_hit_rate"] == best else text


if __name__ == "__main__":
    main()
