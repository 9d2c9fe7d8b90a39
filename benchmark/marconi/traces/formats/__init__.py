"""All trace formats by name, and which one a file has."""

from __future__ import annotations

import json
from pathlib import Path

from traces.files import READ_ERRORS, bare_suffix, open_binary
from traces.formats.base import Context, Format
from traces.formats.blocks import BLOCKS
from traces.formats.marconi import MARCONI
from traces.formats.mooncake import MOONCAKE
from traces.formats.openai import OPENAI
from traces.formats.sglang_logs import SGLANG
from traces.formats.sharegpt import SHAREGPT
from traces.formats.swe_agent import SWE_AGENT
from traces.request import TraceError

__all__ = ["FORMATS", "Context", "Format", "detect", "format_by_name"]

#: In the order in which detection asks them.
FORMATS = {
    known.name: known for known in (MOONCAKE, BLOCKS, MARCONI, SGLANG, SHAREGPT, SWE_AGENT, OPENAI)
}
#: Fields that tell a file of one long object, of which only the beginning is read.
_OPENINGS = {
    b'"conversations"': SHAREGPT,
    b'"trajectory"': SWE_AGENT,
    b'"history"': SWE_AGENT,
    b'"trajectory_format"': SWE_AGENT,
}
_LINES, _BYTES = 100, 1 << 20


def format_by_name(name: str) -> Format:
    """The format of this name.

    Raises:
        TraceError: there is none.
    """
    if name not in FORMATS:
        raise TraceError(f"--format is {name!r}; allowed are auto, {', '.join(FORMATS)}")
    return FORMATS[name]


def detect(path: Path) -> Format:
    """The format of a file, by its name or by the first line that any format recognises.

    Raises:
        TraceError: no format recognises the file.
        OSError: the file cannot be opened.
    """
    if path.is_dir() or bare_suffix(path) == ".traj":
        return SWE_AGENT
    head = _head(path)
    for line in head.splitlines()[:_LINES]:
        found = _of_line(line)
        if found is not None:
            return found
    for opening, known in _OPENINGS.items():
        if opening in head:
            return known
    raise TraceError(f"{path}: no format recognises this file; name one with --format")


def _head(path: Path) -> bytes:
    """The file's beginning, or what of it can be read."""
    head = b""
    with open_binary(path) as stream:
        try:
            while len(head) < _BYTES and (chunk := stream.read(_BYTES // 16)):
                head += chunk
        except READ_ERRORS:
            return head
    return head


def _of_line(line: bytes) -> Format | None:
    try:
        text = line.decode("utf-8")
        logged = SGLANG.decode(text)
        record = json.loads(logged or text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    return next((known for known in FORMATS.values() if known.recognises(record)), None)
