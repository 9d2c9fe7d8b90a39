"""A Markdown table, and which of its numbers is bold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rows.figures import number_text
from rows.store import Row, Rows


def markdown(heading: Sequence[str], lines: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table whose first ``words`` columns are text, and whose others are numbers."""
    rules = ["---"] * words + ["---:"] * (len(heading) - words)
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, rules, *lines))


def numbers(
    values: Mapping[str, float | None], contest: Collection[str] = (), digits: int = 1
) -> list[str]:
    """Printed numbers; the highest of those in ``contest`` is bold, and what prints the same."""
    texts = {key: "" if v is None else number_text(v, f".{digits}f") for key, v in values.items()}
    known = [texts[key] for key in values if key in contest and texts[key]]
    best = max(known, key=float, default="")
    return [
        f"**{text}**" if best and key in contest and text == best else text
        for key, text in texts.items()
    ]


def optional(row: Row | None, key: str) -> float | None:
    """A number of a row, if there is one."""
    value = None if row is None else row.get(key)
    return value if isinstance(value, int | float) else None


def of_part(rows: Rows, part: str) -> list[Row]:
    """The rows of a part.

    Raises:
        ValueError: there are none.
    """
    found = rows.part(part)
    if not found:
        raise ValueError(f"there are no rows of part {part!r}")
    return found


def memory(capacity: str, gib: float) -> str:
    """A capacity and its size."""
    return f"{capacity}, {gib:g} GiB"
