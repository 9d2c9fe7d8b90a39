"""All trace formats by name, and which one a file has."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path

from traces.files import READ_ERRORS, bare_suffix, json_objects, open_binary, trace_files
from traces.formats.aiperf import AIPERF
from traces.formats.bailian import BAILIAN
from traces.formats.base import Context, Format
from traces.formats.blocks import BLOCKS
from traces.formats.dynamo import DYNAMO
from traces.formats.kv_cache_tester import KV_CACHE_TESTER
from traces.formats.lmcache import LMCACHE
from traces.formats.marconi import MARCONI
from traces.formats.mooncake import MOONCAKE
from traces.formats.openai import OPENAI
from traces.formats.openhands import OPENHANDS
from traces.formats.sglang_logs import SGLANG
from traces.formats.sharegpt import SHAREGPT, VLLM_MULTI_TURN
from traces.formats.swe_agent import SWE_AGENT
from traces.request import TraceError

__all__ = ["FORMATS", "Context", "Format", "detect", "format_by_name", "stated_block", "table"]

#: In the order in which detection asks them, and in which the docs list them.
FORMATS = {
    known.name: known
    for known in (
        BAILIAN,
        MOONCAKE,
        DYNAMO,
        KV_CACHE_TESTER,
        BLOCKS,
        MARCONI,
        SGLANG,
        LMCACHE,
        SHAREGPT,
        VLLM_MULTI_TURN,
        OPENHANDS,
        SWE_AGENT,
        AIPERF,
        OPENAI,
    )
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
    """The format of a file, or of a folder's first file that has any.

    By the file's name, or by the first line or object that any format recognises.

    Raises:
        TraceError: no format recognises the file, or any file of the folder.
        OSError: the file cannot be opened.
    """
    if path.is_dir():
        for file in trace_files(path):
            try:
                return detect(file)
            except TraceError:
                continue
        raise _unknown(path, "no file of this folder")
    if bare_suffix(path) == ".traj":
        return SWE_AGENT
    head = _head(path)
    if not head.strip():
        raise _unknown(path, "the file is empty: no format")
    for text in (*head.splitlines()[:_LINES], _first_object(head)):
        found = _of_text(text)
        if found is not None:
            return found
    for known in FORMATS.values():
        if any(opening in head for opening in known.openings):
            return known
    raise _unknown(path, "no format")


def stated_block(path: Path, format: Format) -> int:
    """Tokens of a block as the file says, or as the format has it."""
    if format.block_field is not None:
        if path.is_dir():
            path = next(iter(trace_files(path)))
        field = rb'"%s"\s*:\s*(\d{1,9})' % format.block_field.encode()
        if found := re.search(field, _head(path)):
            return int(found.group(1))
    return format.block


def table() -> str:
    """The formats as a table of the docs."""
    rows = [
        "| format | files | what is taken | time | session |",
        "|---|---|---|---|---|",
    ]
    for known in FORMATS.values():
        cells = (f"`{known.name}`", known.files, known.taken, known.time, known.session)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _unknown(path: Path, what: str) -> TraceError:
    return TraceError(
        f"{path}: {what} recognises this; known are {', '.join(FORMATS)}; name one with --format"
    )


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


def _first_object(head: bytes) -> bytes:
    pieces = (piece for _, piece in json_objects(BytesIO(head)) if piece.startswith(b"{"))
    try:
        return next(pieces, b"")
    except EOFError:
        return b""


def _of_text(data: bytes) -> Format | None:
    try:
        text = data.decode("utf-8")
        logged = SGLANG.decode(text)
        record = json.loads(logged or text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    return next((known for known in FORMATS.values() if known.recognises(record)), None)
