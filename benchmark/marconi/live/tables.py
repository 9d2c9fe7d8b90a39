"""Markdown tables that read well as plain text too."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The first row as header; the first column to the left, all others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(_pad(cell, widths[column], column) for column, cell in enumerate(row))
        for row in rows
    ]
    rule = [
        "-" * width if column == 0 else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    rest = [f"{line} |" for line in lines[1:]]
    return "\n".join([f"{lines[0]} |", "| " + " | ".join(rule) + " |", *rest])


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)
