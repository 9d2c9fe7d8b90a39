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
    # Seconds become milliseconds; below a nanosecond there is only rounding.
    arrival = round(fields.finite(record, "ts") * 1000, 6)
    session = fields.session(record, "session_id")
    return [token_request(arrival, session, prompt, answer, context.block)]


MARCONI = Format("marconi", _parse, recognises=lambda record: "input_tokens" in record)
