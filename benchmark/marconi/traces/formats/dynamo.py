"""Dynamo's request traces (``dynamo.request.trace.v1``): one line a finished request."""

from __future__ import annotations

from traces import fields
from traces.formats.base import Context, Format, Record
from traces.request import Request


def _parse(record: Record, context: Context) -> list[Request]:
    """The request of a ``request_end`` with replay hashes; other events give none.

    Hashes stand for whole prefixes and have 64 bits, of which one is dropped.

    Raises:
        ValueError: a field is wrong, or the block is not the one that is read.
    """
    event = _event(record)
    if event.get("event_type") != "request_end":
        return []
    asked = fields.mapping(fields.required(event, "request"))
    replay = fields.mapping(fields.required(asked, "replay"))
    block = fields.whole(replay, "trace_block_size", 1)
    if block != context.block:
        raise ValueError(f"trace_block_size is {block}, but blocks of {context.block} are read")
    length = fields.whole(replay, "input_length", 1)
    hashes = fields.ids(replay, "input_sequence_hashes", 2**64 - 1)
    full = length // block
    if not full <= len(hashes) <= full + 1:
        raise ValueError(
            f"input_sequence_hashes has {len(hashes)} entries; a prompt of {length} tokens has "
            f"{full} full blocks of {block} tokens"
        )
    agent = event.get("agent_context")
    return [
        Request(
            timestamp_ms=_arrival(event, asked, context),
            session=fields.session(agent, "session_id") if isinstance(agent, dict) else None,
            input_length=length,
            output_length=fields.whole(asked, "output_tokens", 0),
            prompt_ids=tuple(hash & fields.MAX_ID for hash in hashes[:full]),
            output_ids=(),
        )
    ]


def _event(record: Record) -> Record:
    """The event itself, without a recorder's envelope."""
    return record["event"] if isinstance(record.get("event"), dict) else record


def _arrival(event: Record, asked: Record, context: Context) -> float:
    if asked.get("request_received_ms") is not None:
        return context.time_ms(asked, "request_received_ms", "ms")
    took = fields.finite(asked, "total_time_ms") if "total_time_ms" in asked else 0.0
    return max(context.time_ms(event, "event_time_unix_ms", "ms") - took, 0.0)


DYNAMO = Format(
    "dynamo",
    _parse,
    recognises=lambda record: str(_event(record).get("schema", "")).startswith("dynamo.request"),
    files="[Dynamo's](https://github.com/ai-dynamo/dynamo) request traces, "
    "`dynamo.request.trace.v1`",
    taken="block hashes, of `trace_block_size` tokens",
    time="ms",
    session="`session_id` of `agent_context`, else none",
    block_field="trace_block_size",
    reveals=True,
    window=1024,
)
