"""Marconi's JSON lines: one request a line, plain or .xz, read as a stream."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from paper.sequences import encode


class TraceError(ValueError):
    """A trace that cannot be read; says the file and, where there is one, the line."""


def read_trace(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Input and output of every request, encoded, in the order of the file.

    Raises:
        TraceError: at the first line that is no request, or where the file cannot be read on.
    """
    number = 0
    try:
        with _open_text(path) as lines:
            for line in lines:
                number += 1
                yield _request(line)
    except ValueError as error:
        raise TraceError(f"{path.name}: line {number}: {error}") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise TraceError(f"{path.name}: after line {number}: {error}") from error


def _open_text(path: Path) -> AbstractContextManager[TextIO]:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _request(line: str) -> tuple[bytes, bytes]:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return _tokens(fields, "input_tokens"), _tokens(fields, "output_tokens")


def _tokens(fields: dict[str, object], name: str) -> bytes:
    tokens = fields.get(name)
    if not isinstance(tokens, list):
        raise ValueError(f"{name} is missing or no list")
    count = fields.get(f"num_{name}", len(tokens))
    if count != len(tokens):
        raise ValueError(f"num_{name} is {count}, but {len(tokens)} tokens follow")
    return encode(tokens)
