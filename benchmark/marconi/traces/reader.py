"""Reads a trace of any format as a stream of requests; bad places are reported, and counted."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from traces.chat import load_tokenizer
from traces.encoder import Encoder
from traces.fields import UNITS
from traces.files import open_binary
from traces.formats import FORMATS, Context, detect, format_by_name, stated_block
from traces.pace import Pace
from traces.reading import Reading, Report
from traces.request import Request, TraceError
from traces.reveal import RevealedOutputs
from traces.timing import Timing, in_order, interleave, newest_first

Errors = Literal["skip", "fail"]
#: Requests at a file's beginning that show whether it is newest-first.
_SAMPLE = 1024


def read_trace(
    path: Path,
    *,
    format: str = "auto",
    block: int | None = None,
    limit: int | None = None,
    errors: Errors = "skip",
    on_error: Report | None = None,
    tokenizer: Any = None,
    reveal_outputs: bool | None = None,
    timing: Timing | None = None,
    time_unit: str | None = None,
    empty: Errors = "skip",
    on_note: Callable[[str], None] | None = None,
) -> TraceReader:
    """The requests of a trace, in arrival order.

    Memory is that of one record (a line, or a session in formats of whole sessions, of which those
    that run at the same time are held) and of the requests that look ahead, whatever the trace's
    length; a file that is newest-first, or a folder of files with times of their own, is held
    whole. Revealed outputs take what :class:`RevealedOutputs` says besides, tokenized text what
    :class:`Encoder` keeps.

    Args:
        path: a file, plain or .xz, .gz, .zst; or a folder of files of one format, whose sessions
            start in the order of the files' names where they have no times.
        format: a name of ``FORMATS``, or ``auto``: by the file's name or first records.
        block: tokens of a block; by default what the file says, or the format's own.
        limit: stop after so many requests.
        errors: ``skip`` bad places, or ``fail`` at the first with TraceError.
        on_error: told of each place that is skipped; by default it is printed on stderr.
        tokenizer: a Hugging Face tokenizer, its name or folder, for formats that hold text.
        reveal_outputs: take the blocks of outputs that the trace does not name from the session's
            next prompt. By default in formats without answers, where the first request has a
            session and no ``output_hash_ids``. Costs a second reading.
        timing: arrivals for formats without times, by default one session a second.
        time_unit: of the trace's numbers, one of ns, us, ms, s; by default the format's.
        empty: ``fail`` with TraceError at the end where not one request was read.
        on_note: told what is odd about the whole: an order that was mended, a unit that looks
            wrong. By default it is printed on stderr, once a process.

    Raises:
        TraceError: an argument is bad, or the format is unknown or needs a tokenizer.
        OSError: the file cannot be opened.
    """
    return TraceReader(
        Path(path),
        format,
        block,
        limit,
        errors,
        on_error,
        tokenizer,
        reveal_outputs,
        timing,
        time_unit,
        empty,
        on_note,
    )


class TraceReader(Iterator[Request]):
    """The requests of one trace, and what could not be read.

    Attributes:
        format: the format's name.
        block: tokens of a block of ``prompt_ids``.
        skipped: places so far that hold no usable request.
        out_of_order: requests so far whose time lay before that of the request before them. They
            keep their place and get its time; the first is reported (with ``fail``, it is fatal).
    """

    def __init__(
        self,
        path: Path,
        format: str,
        block: int | None,
        limit: int | None,
        errors: Errors,
        on_error: Report | None,
        tokenizer: Any,
        reveal_outputs: bool | None,
        timing: Timing | None,
        time_unit: str | None,
        empty: Errors,
        on_note: Callable[[str], None] | None,
    ) -> None:
        if errors not in ("skip", "fail"):
            raise TraceError(f"errors is {errors!r}; allowed are skip and fail")
        if limit is not None and limit < 0:
            raise TraceError(f"--limit is {limit}; allowed are whole numbers from 0")
        if time_unit is not None and time_unit not in UNITS:
            raise TraceError(f"--time-unit is {time_unit!r}; allowed are {', '.join(UNITS)}")
        self._path = path
        self._mixed = format == "auto"
        self._format = detect(path) if format == "auto" else format_by_name(format)
        if not path.is_dir():
            open_binary(path).close()
        if self._format.needs_tokenizer and tokenizer is None:
            raise TraceError(f"{path}: format {self._format.name} holds text and needs --tokenizer")
        self.format = self._format.name
        self.block = stated_block(path, self._format) if block is None else block
        if self.block < 1:
            raise TraceError(f"--block is {block}; allowed are whole numbers from 1")
        encoder = None if tokenizer is None else Encoder(load_tokenizer(tokenizer))
        self._context = Context(self.block, encoder, timing or Timing(), time_unit=time_unit)
        self._may_be_empty = empty == "skip" or limit == 0
        self._on_note = on_note or _say
        self._errors = errors
        self._on_error = on_error or _print
        self.skipped = 0
        self.out_of_order = 0
        self._stream = self._requests(limit, reveal_outputs)

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        return next(self._stream)

    def _requests(self, limit: int | None, reveal: bool | None) -> Iterator[Request]:
        if reveal is None:
            reveal = self._format.reveals and self._outputs_are_hidden()
        requests: Iterator[Request] = islice(self._reading(self._report, limit), limit)
        if reveal:
            first = islice(self._reading(_ignore, limit), limit)
            requests = RevealedOutputs(first, self.block).complete(requests)
        pace = Pace()
        for request in requests:
            pace.add(request)
            yield request
        if not pace.count and not self._may_be_empty:
            raise TraceError(
                f"{self._path}: not one request was read as format {self.format}, {self.skipped} "
                f"places were skipped; known formats are {', '.join(FORMATS)}"
            )
        odd = None if self._format.whole_sessions else pace.question()
        if odd is not None:
            self._on_note(f"{self._path}: {odd}")

    def _outputs_are_hidden(self) -> bool:
        """Whether the first usable record is one of a session and says nothing of its output."""
        reading = Reading(self._path, self._format, self._context, _ignore, mixed=self._mixed)
        for record, (request, *_) in reading.records():
            return request.session is not None and "output_hash_ids" not in record
        return False

    def _reading(self, report: Report, limit: int | None) -> Iterator[Request]:
        reading = Reading(self._path, self._format, self._context, report, mixed=self._mixed)
        if self._format.whole_sessions:
            sessions = (requests for _, requests in reading.records())
            return interleave(sessions, self._context.timing)
        placed = ((reading.place, request) for _, found in reading.records() for request in found)
        if self._path.is_dir():
            return iter(sorted((request for _, request in placed), key=_ARRIVAL))
        return self._in_order(placed, report, _SAMPLE if limit is None else min(limit, _SAMPLE))

    def _in_order(
        self, placed: Iterator[tuple[str, Request]], report: Report, sample: int
    ) -> Iterator[Request]:
        """A newest-first file is turned round, any other put in order as far as the window goes."""
        head, failure = [], None
        try:
            for item in islice(placed, sample):
                head.append(item)
        except TraceError as error:
            failure = error
        if newest_first([request for _, request in head]):
            if report is not _ignore:
                self._on_note(f"{self._path}: is newest-first; its requests are sorted by time")
            held = [request for _, request in chain(head, _rest(placed, failure))]
            yield from sorted(reversed(held), key=_ARRIVAL)
            return
        ordered = in_order(chain(head, _rest(placed, failure)), self._format.window)
        yield from self._monotone(ordered, report)

    def _monotone(
        self, requests: Iterator[tuple[str, Request]], report: Report
    ) -> Iterator[Request]:
        latest, late = -math.inf, 0
        for place, request in requests:
            if request.timestamp_ms >= latest:
                latest = request.timestamp_ms
                yield request
                continue
            late += 1
            if report is not _ignore:
                self.out_of_order = late
                if late == 1:
                    found = f"arrives at {request.timestamp_ms} ms, after one of {latest} ms"
                    note = f"{place}: {found}; such requests arrive with the one before"
                    self._tell(TraceError(note))
            yield replace(request, timestamp_ms=latest)

    def _report(self, error: TraceError) -> None:
        self.skipped += self._errors == "skip"
        self._tell(error)

    def _tell(self, error: TraceError) -> None:
        if self._errors == "fail":
            raise error
        self._on_error(error)


_ARRIVAL = attrgetter("timestamp_ms")


def _rest(
    placed: Iterator[tuple[str, Request]], failure: TraceError | None
) -> Iterator[tuple[str, Request]]:
    """What follows, or the error that ended it."""
    if failure is not None:
        raise failure
    yield from placed


@functools.cache
def _say(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)


def _ignore(error: TraceError) -> None:
    """For readings whose bad places another reading reports."""


def _print(error: TraceError) -> None:
    print(f"skipped: {error}", file=sys.stderr)
