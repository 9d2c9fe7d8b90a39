"""The launches that operators make: what was served of each, and what came of it."""

from __future__ import annotations

from launches.pairs import FIRST

from rows.store import Row, Rows
from rows.tables.common import markdown, of_part

_HEADING = (
    *("#", "what operators serve", "what they type", "served here"),
    *("left out, and why", "result"),
)


def matrix(rows: Rows) -> str:
    """A line a launch, in the order of their numbers."""
    found = [row for row in _sorted(rows) if row["number"] <= FIRST]
    return markdown(_HEADING, [_line(row) for row in found], words=len(_HEADING))


def matrix_pairs(rows: Rows) -> str:
    """A line for each launch in which settings meet two by two."""
    heading = ("settings", "result")
    lines = [[str(row["typed"]), _result(row)] for row in _sorted(rows) if row["number"] > FIRST]
    return markdown(heading, lines, words=len(heading))


def _sorted(rows: Rows) -> list[Row]:
    return sorted(of_part(rows, "matrix"), key=lambda row: int(row["number"]))


def _line(row: Row) -> list[str]:
    flags = f"`{row['flags']}`" if row["flags"] else "no flags"
    served = f"{row['tiny']}: {flags}".replace("|", "/")
    return [
        *(str(row["number"]), str(row["model"]), str(row["typed"]), served),
        *("; ".join(row["differs"]), _result(row)),
    ]


def _result(row: Row) -> str:
    if not row["served"]:
        return "**failed**: " + "; ".join(row["problems"])
    if row["message"]:
        return f"refused: {row['message']}"
    core = "Rust core" if "Rust" in row["core"] else "Python core"
    whose = "under policy 1 " if row["rounds"] else ""
    return f"{core}; {whose}{row['equal']} of {row['asked']} answers are stock's"
