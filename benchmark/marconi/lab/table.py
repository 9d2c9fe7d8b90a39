"""A table of result rows: one line a trace and size, one column a policy, hit % / FLOPs saved %.

python benchmark/marconi/table.py results.jsonl
python benchmark/marconi/table.py --flops results.jsonl    FLOPs saved % alone
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lab.costs import DEFAULT_RATIO
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
    parser.add_argument("--flops", action="store_true", help="FLOPs saved alone, best in bold")
    options = parser.parse_args(argv)
    rows = [row for path in options.results for row in finished_rows(path).values()]
    print(table(rows, flops=options.flops))


def table(rows: Iterable[Row], *, flops: bool = False) -> str:
    """Markdown; the best of a line, bounds apart, is bold.

    Args:
        flops: a cell is the FLOPs saved, and the most of them is best; else it is the token hit
            rate, the highest of which is best, and the FLOPs saved.
    """
    measure = "flops_saved" if flops else "token_hit_rate"
    cells: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault(_size(row), {})[row["policy"]] = row
    policies = list(dict.fromkeys(policy for line in cells.values() for policy in line))
    lines = [
        "| " + " | ".join(("trace", "capacity", *policies)) + " |",
        "|" + "---|" * (2 + len(policies)),
    ]
    for (trace, *size), line in cells.items():
        contest = [_percent(row, measure) for name, row in line.items() if name not in BOUNDS]
        best = max(contest, key=float, default=None)
        texts = [_cell(line.get(policy), measure, best) for policy in policies]
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
    elif row.get("mamba_full_memory_ratio") not in (None, DEFAULT_RATIO):
        extra.append(f"ratio {row['mamba_full_memory_ratio']:g}")
    if row["concurrency"]:
        extra.append(f"{row['concurrency']} at a time")
    if row.get("measure_from"):
        extra.append(f"from {100 * row['measure_from']:g} % on")
    return row["trace"].partition(".")[0], ", ".join(filter(None, (*extra, memory)))


def _cell(row: Row | None, measure: str, best: str | None) -> str:
    if row is None:
        return ""
    text = _percent(row, measure)
    is_best = row["policy"] not in BOUNDS and text == best
    if measure == "token_hit_rate":
        text += f"/{_percent(row, 'flops_saved')}"
    return f"**{text}**" if is_best else text


def _percent(row: Row, measure: str) -> str:
    return f"{100 * row[measure]:.1f}"


if __name__ == "__main__":
    main()
