"""Reads a trace of any format as a stream of requests; bad places are reported, and counted."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from traces.chat import load_tokenizer
from traces.files import open_binary
from traces.formats import FORMATS, Context, detect, format_by_name
from traces.reading import Reading, Report
from traces.request import Request, TraceError
from traces.reveal import RevealedOutputs
from traces.timing import Timing, in_order, interleave

Errors = Literal["skip", "fail"]


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
) -> TraceReader:
    """The requests of a trace, in arrival order.

    Memory is that of one record (a line, or a session in ShareGPT and SWE-agent files, of which
    those that run at the same time are held), whatever the trace's length; revealed outputs take
    what :class:`RevealedOutputs` says besides.

    Args:
        path: a file, plain or .xz, .gz, .zst; for SWE-agent also a folder of .traj files, which
            start in the order of their names.
        format: a name of ``FORMATS``, or ``auto``: by the file's name or first records.
        block: tokens of a block; by default the format's own (512 for Mooncake, else 64).
        limit: stop after so many requests.
        errors: ``skip`` bad places, or ``fail`` at the first with TraceError.
        on_error: told of each place that is skipped; by default it is printed on stderr.
        tokenizer: a Hugging Face tokenizer, its name or folder, for formats that hold text.
        reveal_outputs: take the blocks of outputs that the trace does not name from the session's
            next prompt. By default where the first request has a session and no
            ``output_hash_ids``. Costs a second reading.
        timing: arrivals for formats without times, by default one session a second.

    Raises:
        TraceError: an argument is bad, or the format is unknown or needs a tokenizer.
        OSError: the file cannot be opened.
    """
    return TraceReader(
        Path(path), format, block, limit, errors, on_error, tokenizer, reveal_outputs, timing
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
    ) -> None:
        if errors not in ("skip", "fail"):
            raise TraceError(f"errors is {errors!r}; allowed are skip and fail")
        if limit is not None and limit < 0:
            raise TraceError(f"--limit is {limit}; allowed are whole numbers from 0")
        self._path = path
        self._format = detect(path) if format == "auto" else format_by_name(format)
        if path.is_dir() and self._format is not FORMATS["swe-agent"]:
            raise TraceError(f"{path} is a folder; only --format swe-agent reads one")
        if not path.is_dir():
            open_binary(path).close()
        if self._format.needs_tokenizer and tokenizer is None:
            raise TraceError(f"{path}: format {self._format.name} holds text and needs --tokenizer")
        self.format = self._format.name
        self.block = self._format.block if block is None else block
        if self.block < 1:
            raise TraceError(f"--block is {block}; allowed are whole numbers from 1")
        self._context = Context(self.block, load_tokenizer(tokenizer), timing or Timing())
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
            reveal = self._format is FORMATS["blocks"] and self._outputs_are_hidden()
        requests: Iterator[Request] = islice(self._reading(self._report), limit)
        if reveal:
            first = islice(self._reading(_ignore), limit)
            requests = RevealedOutputs(first, self.block).complete(requests)
        yield from requests

    def _outputs_are_hidden(self) -> bool:
        """Whether the first usable record is one of a session and says nothing of its output."""
        reading = Reading(self._path, self._format, self._context, _ignore)
        for record, (request, *_) in reading.records():
            return request.session is not None and "output_hash_ids" not in record
        return False

    def _reading(self, report: Report) -> Iterator[Request]:
        reading = Reading(self._path, self._format, self._context, report)
        sessions = (requests for _, requests in reading.records())
        if self._format.whole_sessions:
            return interleave(sessions, self._context.timing)
        ordered = in_order(chain.from_iterable(sessions), self._format.window)
        return self._monotone(ordered, reading, report)

    def _monotone(
        self, requests: Iterator[Request], reading: Reading, report: Report
    ) -> Iterator[Request]:
        latest, late = -math.inf, 0
        for request in requests:
            if request.timestamp_ms >= latest:
                latest = request.timestamp_ms
                yield request
                continue
            late += 1
            if report is not _ignore:
                self.out_of_order = late
                if late == 1:
                    found = f"arrives at {request.timestamp_ms} ms, after one of {latest} ms"
                    note = f"{reading.place}: {found}; such requests arrive with the one before"
                    self._tell(TraceError(note))
            yield replace(request, timestamp_ms=latest)

    def _report(self, error: TraceError) -> None:
        self.skipped += self._errors == "skip"
        self._tell(error)

    def _tell(self, error: TraceError) -> None:
        if self._errors == "fail":
            raise error
        self._on_error(error)


def _ignore(error: TraceError) -> None:
    """For readings whose bad places another reading reports."""


def _print(error: TraceError) -> None:
    print(f"skipped: {error}", file=sys.stderr)
