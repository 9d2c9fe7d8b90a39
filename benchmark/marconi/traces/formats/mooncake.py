"""Mooncake's JSON lines: block ids of 512 tokens, the last of which may cover a partial block."""

from __future__ import annotations

from traces.formats.base import Context, Format, Record
from traces.formats.blocks import hashed_request
from traces.request import Request

BLOCK_TOKENS = 512


def _parse(record: Record, context: Context) -> list[Request]:
    return [hashed_request(record, context)]


def _recognises(record: Record) -> bool:
    ids, length = record.get("hash_ids"), record.get("input_length")
    return (
        isinstance(ids, list)
        and type(length) is int
        and "output_hash_ids" not in record
        and "session_id" not in record
        and len(ids) == -(-length // BLOCK_TOKENS)
    )


MOONCAKE = Format("mooncake", _parse, recognises=_recognises, block=BLOCK_TOKENS)
