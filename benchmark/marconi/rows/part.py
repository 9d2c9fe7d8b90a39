"""A part: what is measured by which commands, and how its rows are made of what they print."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rows.store import Row

Record = dict[str, Any]
#: What the commands of a part gave, by :attr:`Command.out`.
Found = Mapping[str, Sequence[Record]]

#: What a command line says for the folder of traces, and for the tiny model.
TRACES, TINY = "traces", ".cache/tiny-models/qwen3-next-float32"


def json_lines(text: str) -> list[Record]:
    """Records of JSON lines; a last line that was cut off is left out."""
    records = []
    for line in text.splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


@dataclass(frozen=True)
class Command:
    """One command line, from the root of the repository.

    Attributes:
        words: of it, without the interpreter; traces are under :data:`TRACES`.
        out: file that its records are kept in; several commands may share one.
        appends: it takes ``--out``, appends JSON lines there, and passes over what is there.
        read: records of what it prints, if it does not.
    """

    words: tuple[str, ...]
    out: str
    appends: bool = True
    read: Callable[[str], list[Record]] = json_lines

    def typed(self) -> str:
        """As a user types it."""
        return "python " + shlex.join(self.words)


@dataclass(frozen=True)
class Part:
    """One part of the results.

    Attributes:
        name: of its file of rows.
        answers: what it measures, in one sentence.
        minutes: that it takes on two cores, about.
        code: folders and files whose change makes its rows old.
        commands: that measure it, in their order.
        rows: of what they gave, as far as it is there; each says under ``measured`` by which
            command alone.
        needs_quiet: it measures time, so that nothing else should run.
        sglang: release that it drives, if not the installed one.
    """

    name: str
    answers: str
    minutes: float
    code: tuple[str, ...]
    commands: tuple[Command, ...]
    rows: Callable[[Found], list[Row]]
    needs_quiet: bool = False
    sglang: str | None = None


def table_records(text: str) -> list[Record]:
    """The lines of all Markdown tables in a text, as text by column heading."""
    records: list[Record] = []
    heading: list[str] | None = None
    for line in text.splitlines():
        if not line.startswith("|"):
            heading = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if heading is None:
            heading = cells
        elif not all(set(cell) <= set("-: ") for cell in cells):
            records.append(dict(zip(heading, cells, strict=True)))
    return records


def number(text: str) -> float:
    """A printed number, thousands apart or not."""
    return float(text.replace(",", ""))


def percent(share: float) -> float:
    """A share as a percentage, at more digits than any page prints."""
    return round(100 * share, 4)
