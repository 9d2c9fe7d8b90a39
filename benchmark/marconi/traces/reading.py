"""One reading of a trace's files: records in file order, and a report of each bad place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from traces import fields
from traces.files import COMPRESSIONS, READ_ERRORS, json_lines, json_objects, open_binary
from traces.formats.base import Context, Format, Record
from traces.request import Request, TraceError

Report = Callable[[TraceError], None]
# What a record of the wrong shape can raise in a parser, a tokenizer or the JSON module.
_BAD_RECORD = (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError)


class Reading:
    """One reading, from first to last; ``place`` names where it stands."""

    def __init__(self, path: Path, format: Format, context: Context, report: Report) -> None:
        self._path, self._format, self._context, self._report = path, format, context, report
        self.place = str(path)

    def records(self) -> Iterator[tuple[Record, Sequence[Request]]]:
        """Each record that is usable, with its requests (at least one)."""
        number = 0
        for path in _files(self._path):
            for line, piece in self._pieces(path):
                self.place = f"{path}, line {line}"
                number += 1
                name = f"{_stem(path)}:{line}"
                try:
                    record = self._decode(piece)
                    if record is None:
                        continue
                    context = replace(self._context, place=name, number=number)
                    requests = self._format.parse(record, context)
                except _BAD_RECORD as error:
                    self._report(TraceError(f"{self.place}: {error or repr(error)}"))
                    continue
                if requests:
                    yield record, requests

    def _decode(self, piece: bytes) -> Record | None:
        text = self._format.decode(piece.decode("utf-8"))
        return None if text is None else fields.mapping(json.loads(text))

    def _pieces(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Pieces up to the end, or to where the file cannot be read on, which is reported."""
        self.place = str(path)
        line = 0
        try:
            with closing(open_binary(path)) as stream:
                cut = json_lines if self._format.cut == "lines" else json_objects
                for line, piece in cut(stream):
                    yield line, piece
        except READ_ERRORS as error:
            self.place = f"{path}, line {line + 1}"
            self._report(TraceError(f"{self.place}: cannot be read on: {error}"))


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or a folder's trajectories, by name."""
    if not path.is_dir():
        yield path
        return
    endings = {".traj", *(f".traj{ending}" for ending in COMPRESSIONS)}
    found = (file for file in path.rglob("*") if "".join(file.suffixes[-2:]) in endings)
    yield from sorted({*found, *path.rglob("*.traj")})


def _stem(path: Path) -> str:
    return path.name.split(".")[0] if path.suffix in COMPRESSIONS else path.stem
