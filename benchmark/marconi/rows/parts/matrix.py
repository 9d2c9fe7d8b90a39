"""The part that serves the launches that operators make."""

from __future__ import annotations

from collections.abc import Sequence

from launches.listed import ALL, Launch
from launches.pairs import pairs

from rows.part import Command, Found, Part, Record
from rows.parts.live import LIVE_CODE
from rows.store import Row

_LAUNCHES = Command(("benchmark/marconi/matrix.py",), "matrix")
_PAIRS = Command(("benchmark/marconi/matrix.py", "--pairs", "--requests", "120"), "pairs")


def matrix_rows(records: Sequence[Record], command: str) -> list[Row]:
    """A row a launch: what operators type, what was served here, what came of it."""
    launches = {launch.number: launch for launch in (*ALL, *pairs())}
    return [
        {
            **{"part": "matrix", "id": f"matrix/launch-{record['number']}"},
            **_said(launches[record["number"]]),
            **record,
            "measured": {"command": command},
        }
        for record in records
        if record["number"] in launches
    ]


def _said(launch: Launch) -> Row:
    return {
        "model": launch.model,
        "typed": launch.typed,
        "tiny": launch.tiny,
        "flags": " and ".join(" ".join(flags) for flags in (launch.flags, launch.decode) if flags),
        "differs": list(launch.differs()),
        "rounds": launch.rounds,
    }


def _rows(found: Found) -> list[Row]:
    return [
        row
        for command in (_LAUNCHES, _PAIRS)
        for row in matrix_rows(found.get(command.out, ()), command.typed())
    ]


MATRIX = Part(
    "matrix",
    "whether the launches that operators make serve with policy 3, with stock's answers",
    90,
    (*LIVE_CODE, "benchmark/marconi/launches", "test/cpu_platform"),
    (_LAUNCHES, _PAIRS),
    _rows,
)
