"""Marconi's JSON lines: a session's turns with the token ids of prompt and answer."""

from __future__ import annotations

from traces import fields
from traces.formats.base import Context, Format, Record
from traces.hashing import token_request
from traces.request import Request


def _parse(record: Record, context: Context) -> list[Request]:
    prompt, answer = (
        fields.ids(record, name, fields.MAX_TOKEN) for name in ("input_tokens", "output_tokens")
    )
    for name, tokens in (("num_input_tokens", prompt), ("num_output_tokens", answer)):
        if name in record and fields.whole(record, name, 0) != len(tokens):
            raise ValueError(f"{name} is {record[name]}, but {len(tokens)} tokens follow")
    arrival = context.time_ms(record, "ts", "s")
    session = fields.session(record, "session_id")
    return [token_request(arrival, session, prompt, answer, context.block)]


MARCONI = Format(
    "marconi",
    _parse,
    recognises=lambda record: isinstance(record.get("input_tokens"), list),
    files="Marconi's JSON lines: `session_id`, `turn_id`, `ts`, `input_tokens`, `output_tokens`",
    taken="tokens",
    time="s",
    session="`session_id`",
)
