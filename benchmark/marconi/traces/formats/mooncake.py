"""Mooncake's JSON lines: block ids of 512 tokens, the last of which may cover a partial block."""

from __future__ import annotations

from traces import fields
from traces.formats.base import Context, Format, Record
from traces.formats.blocks import hashed_request
from traces.formats.delays import arrival_ms
from traces.request import Request

BLOCK_TOKENS = 512


def _parse(record: Record, context: Context) -> list[Request]:
    session = fields.session(record, "session_id")
    return [hashed_request(record, context, arrival_ms(record, context, session))]


def _recognises(record: Record) -> bool:
    ids, length = record.get("hash_ids"), record.get("input_length")
    return (
        isinstance(ids, list)
        and type(length) is int
        and not {"output_hash_ids", "block_tokens"} & record.keys()
        and len(ids) == -(-length // BLOCK_TOKENS)
        # One block of a session may as well be one of fewer tokens.
        and ("session_id" not in record or len(ids) > 1)
    )


MOONCAKE = Format(
    "mooncake",
    _parse,
    recognises=_recognises,
    files="[Mooncake's traces](https://github.com/kvcache-ai/Mooncake), and files of that shape "
    "for Dynamo and AIPerf, there with `session_id` and `delay`",
    taken="block hashes, of 512 tokens or `--block`",
    time="ms",
    session="`session_id`, else none",
    block=BLOCK_TOKENS,
    reveals=True,
    window=1024,
)
