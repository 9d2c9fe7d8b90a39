"""Rows of measured figures in ``results/*.jsonl``: reading them with checks, and writing them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

#: What a row must say of how it was measured, each a string.
MEASURED = ("command", "commit", "date", "sglang", "python", "machine")
ID = re.compile(r"[a-z0-9]+(?:[-/][a-z0-9]+)*")


class RowErrors(ValueError):
    """Rows that cannot be used; a line each, with file and line number."""


@dataclass(frozen=True)
class Rows:
    """All rows, by id, in the order of the files."""

    by_id: Mapping[str, Row]

    def part(self, name: str) -> list[Row]:
        """The rows of one part, in the order of its file."""
        return [row for row in self.by_id.values() if row["part"] == name]

    def value(self, identity: str, key: str) -> Any:
        """What a row says under a dotted key.

        Raises:
            KeyError: no such row, or no such key in it; the message says which.
        """
        if identity not in self.by_id:
            raise KeyError(f"no row has the id {identity!r}")
        value: Any = self.by_id[identity]
        for name in key.split("."):
            if not isinstance(value, Mapping) or name not in value:
                raise KeyError(f"the row {identity!r} has no {key!r}")
            value = value[name]
        return value

    def number(self, identity: str, key: str) -> float:
        """As :meth:`value`, for what must be a number.

        Raises:
            KeyError: no such row or key, or it holds no number.
        """
        value = self.value(identity, key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise KeyError(f"{identity}.{key} is {value!r}, which is no number")
        return float(value)

    def has(self, identity: str, key: str) -> bool:
        """Whether :meth:`value` would find something."""
        try:
            self.value(identity, key)
        except KeyError:
            return False
        return True


def read_rows(folder: Path) -> Rows:
    """Every row of a folder's ``*.jsonl`` files.

    Raises:
        RowErrors: lines that are no rows, and ids that stand twice; all of them at once.
    """
    by_id: dict[str, Row] = {}
    places: dict[str, str] = {}
    problems = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            place = f"{path}:{number}"
            try:
                row = checked(line, part=path.stem)
            except ValueError as error:
                problems.append(f"{place}: {error}")
                continue
            if row["id"] in by_id:
                problems.append(f"{place}: the id {row['id']!r} is at {places[row['id']]} already")
                continue
            by_id[row["id"]], places[row["id"]] = row, place
    if problems:
        raise RowErrors("\n".join(problems))
    return Rows(by_id)


def checked(line: str, part: str) -> Row:
    """A line as a row.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    if row.get("part") != part:
        raise ValueError(f"part is {row.get('part')!r}; the file's name says {part!r}")
    identity = row.get("id")
    if not isinstance(identity, str) or not ID.fullmatch(identity):
        raise ValueError(f"id is {identity!r}; allowed are lower-case words joined by - and /")
    if identity.partition("/")[0] != part:
        raise ValueError(f"id is {identity!r}; it must begin with its part, {part!r}")
    measured = row.get("measured")
    if not isinstance(measured, dict):
        raise ValueError("measured is missing: how, when and where it was measured")
    missing = [name for name in MEASURED if not isinstance(measured.get(name), str)]
    if missing:
        raise ValueError(f"measured lacks {', '.join(missing)}")
    return row


def write_part(folder: Path, part: str, rows: Iterable[Row]) -> Path:
    """Write the file of one part, rows in the order of their ids.

    Raises:
        ValueError: a row that :func:`read_rows` would not take.
    """
    path = folder / f"{part}.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in sorted(rows, key=lambda row: row["id"])]
    for line in lines:
        checked(line, part)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def merged(old: Sequence[Row], new: Sequence[Row], kept: Iterable[str] = ()) -> Iterator[Row]:
    """``new`` rows, and the ``old`` ones whose ids are ``kept`` and not among the new."""
    fresh = {row["id"] for row in new}
    wanted = set(kept) - fresh
    yield from new
    yield from (row for row in old if row["id"] in wanted)
