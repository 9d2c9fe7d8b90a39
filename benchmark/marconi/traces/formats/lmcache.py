"""LMCache's agent traces: JSON lines with the text of a prompt and of its answer."""

from __future__ import annotations

from traces import fields
from traces.formats.base import Context, Format, Record
from traces.hashing import token_request
from traces.request import Request


def _parse(record: Record, context: Context) -> list[Request]:
    prompt, answer = (context.text.encode(_text(record, name)) for name in ("input", "output"))
    arrival = context.time_ms(record, "timestamp", "unix")
    session = fields.session(record, "session_id")
    return [token_request(arrival, session, prompt, answer, context.block)]


def _text(record: Record, name: str) -> str:
    value = fields.required(record, name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {fields.brief(value)}, no text")
    return value


LMCACHE = Format(
    "lmcache",
    _parse,
    recognises=lambda record: (
        isinstance(record.get("input"), str)
        and isinstance(record.get("output"), str)
        and "timestamp" in record
    ),
    files="[lmcache-agent-trace](https://github.com/LMCache/lmcache-agent-trace), a file or a "
    "folder of them",
    taken="tokens of `input` and `output` as they stand, by `--tokenizer`",
    time="s, ms, µs or ns since 1970, by size; else s",
    session="`session_id`",
    needs_tokenizer=True,
    window=1024,
)
