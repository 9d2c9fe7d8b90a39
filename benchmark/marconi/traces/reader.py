"""Request traces as block ids: read line by line, a corrupt line is reported and skipped."""

from __future__ import annotations

import gzip
import json
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from traces.request import Request, TraceError

_OPENERS: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".gz": gzip.open}


def read_trace(
    path: Path, *, limit: int | None = None, on_error: Callable[[TraceError], None] | None = None
) -> Iterator[Request]:
    """The requests of a block-hash trace (JSON lines, plain, .xz or .gz), in arrival order.

    Memory is that of one line, whatever the trace's length.

    Args:
        limit: stop after so many requests.
        on_error: told of each corrupt line, which is then skipped; by default it is printed.
    """
    report = on_error or (lambda error: print(f"skipped: {error}", file=sys.stderr))
    found = 0
    with _OPENERS.get(path.suffix, open)(path, "rt") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and found >= limit:
                return
            if not line.strip():
                continue
            try:
                request = _parse(line)
            except (ValueError, KeyError, TypeError) as error:
                report(TraceError(f"{path}, line {number}: {error!r}"))
                continue
            found += 1
            yield request


def _parse(line: str) -> Request:
    record: dict[str, Any] = json.loads(line)
    request = Request(
        timestamp_ms=float(record["timestamp"]),
        session=record.get("session_id"),
        input_length=int(record["input_length"]),
        output_length=int(record["output_length"]),
        prompt_ids=tuple(map(int, record["hash_ids"])),
        output_ids=tuple(map(int, record.get("output_hash_ids", ()))),
    )
    if request.input_length < 1 or request.output_length < 0:
        raise ValueError(f"lengths {request.input_length} and {request.output_length}")
    return request
