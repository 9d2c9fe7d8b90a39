"""Block-hash JSON lines: one id for each full block of a prompt, and of its output where known."""

from __future__ import annotations

from traces import fields
from traces.formats.base import Context, Format, Record
from traces.request import HINTS, Request


def _parse(record: Record, context: Context) -> list[Request]:
    output_ids = fields.ids(record, "output_hash_ids") if "output_hash_ids" in record else ()
    arrival = context.time_ms(record, "timestamp", "ms")
    return [hashed_request(record, context, arrival, output_ids)]


def hashed_request(
    record: Record,
    context: Context,
    timestamp_ms: float,
    output_ids: tuple[int, ...] = (),
    session: str | None = None,
) -> Request:
    """A request of block ids; a last id that covers a partial block is left out.

    Raises:
        ValueError: a field is wrong, or there are more or fewer ids than blocks.
    """
    block = context.block
    length = fields.whole(record, "input_length", 1)
    output_length = fields.whole(record, "output_length", 0)
    ids = fields.ids(record, "hash_ids")
    full = length // block
    if not full <= len(ids) <= full + 1:
        raise ValueError(
            f"hash_ids has {len(ids)} entries; a prompt of {length} tokens has {full} full blocks "
            f"of {block} tokens (--block)"
        )
    room = (length + output_length) // block - full
    if len(output_ids) > room:
        raise ValueError(
            f"output_hash_ids has {len(output_ids)} entries; prompt and output fill {room} more "
            f"blocks of {block} tokens"
        )
    return Request(
        timestamp_ms=timestamp_ms,
        session=session or fields.session(record, "session_id"),
        input_length=length,
        output_length=output_length,
        prompt_ids=ids[:full],
        output_ids=output_ids,
        hint=fields.one_of(record, "hint", HINTS),
    )


BLOCKS = Format(
    "blocks",
    _parse,
    recognises=lambda record: "hash_ids" in record,
    files="JSON lines of `--marconi-record`, and any with `timestamp`, `input_length`, "
    "`output_length`, `hash_ids` and, optional, `session_id`, `output_hash_ids`, `hint`",
    taken="block hashes, of 64 tokens or `--block`",
    time="ms",
    session="`session_id`",
    block_field="block_tokens",
    reveals=True,
)
