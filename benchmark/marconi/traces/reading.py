"""One reading of a trace's files: records in file order, and a report of each bad place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import IO

from traces import fields
from traces.files import (
    COMPRESSIONS,
    READ_ERRORS,
    bare_suffix,
    json_lines,
    json_objects,
    open_binary,
    trace_files,
    whole_file,
)
from traces.formats import detect
from traces.formats.base import Context, Format, Record
from traces.request import Request, TraceError

Report = Callable[[TraceError], None]
# What a record of the wrong shape can raise in a parser, a tokenizer or the JSON module.
_BAD_RECORD = (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError)


class Reading:
    """One reading, from first to last; ``place`` names where it stands."""

    def __init__(
        self, path: Path, format: Format, context: Context, report: Report, *, mixed: bool = False
    ) -> None:
        """Args:
        mixed: a folder may hold files of other formats, which are reported and left out.
        """
        self._path, self._format, self._report, self._mixed = path, format, report, mixed
        self._context = replace(context, memory={})
        self.place = str(path)

    def records(self) -> Iterator[tuple[Record, Sequence[Request]]]:
        """Each record that is usable, with its requests (at least one)."""
        number = 0
        for path in self._files():
            inside = path.relative_to(self._path) if self._path.is_dir() else Path(path.name)
            name = str(inside.with_name(_stem(path)))
            folder = str(inside.parent) if inside.parent.parts else ""
            for line, value in self._values(path):
                number += 1
                self.place = f"{path}, line {line}"
                context = replace(
                    self._context, place=f"{name}:{line}", folder=folder, number=number
                )
                try:
                    record = fields.mapping(value)
                    requests = self._format.parse(record, context)
                except _BAD_RECORD as error:
                    self._report(TraceError(f"{self.place}: {error or repr(error)}"))
                    continue
                if requests:
                    yield record, requests

    def _values(self, path: Path) -> Iterator[tuple[str, object]]:
        """Line and content of each record; objects of a list are told apart by their number."""
        for line, piece in self._pieces(path):
            self.place = f"{path}, line {line}"
            try:
                text = self._format.decode(piece.decode("utf-8"))
                value = None if text is None else json.loads(text)
            except _BAD_RECORD as error:
                self._report(TraceError(f"{self.place}: {error or repr(error)}"))
                continue
            if text is None:
                continue
            if self._format.cut != "document" or not isinstance(value, list):
                yield str(line), value
            elif all(isinstance(part, dict) and self._format.is_part(part) for part in value):
                yield str(line), {"": value}
            else:
                yield from ((f"{line}, object {n}", part) for n, part in enumerate(value, 1))

    def _files(self) -> Iterator[Path]:
        """The file itself, or a folder's files of this format."""
        if not self._path.is_dir():
            yield self._path
            return
        for path in trace_files(self._path):
            try:
                found = detect(path) if self._mixed else self._format
            except TraceError as error:
                self._report(error)
                continue
            if found is self._format:
                yield path
            else:
                text = (
                    f"{path}, line 1: is of format {found.name}, the folder of {self._format.name}"
                )
                self._report(TraceError(text))

    def _pieces(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Pieces up to the end, or to where the file cannot be read on, which is reported."""
        self.place = str(path)
        line = 0
        try:
            with closing(open_binary(path)) as stream:
                for line, piece in self._cut(path)(stream):
                    yield line, piece
        except READ_ERRORS as error:
            self.place = f"{path}, line {line + 1}"
            self._report(TraceError(f"{self.place}: cannot be read on: {error}"))

    def _cut(self, path: Path) -> Callable[[IO[bytes]], Iterator[tuple[int, bytes]]]:
        document = bare_suffix(path) != ".jsonl"
        if self._format.cut == "document":
            return whole_file if document else json_lines
        if self._format.cut == "objects" or bare_suffix(path) == ".json":
            return json_objects
        return json_lines


def _stem(path: Path) -> str:
    return path.name.split(".")[0] if path.suffix in COMPRESSIONS else path.stem
