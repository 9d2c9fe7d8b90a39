"""Session files of kv-cache-tester, and InferenceX's agent traces: block ids, nested sub-agents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import attrgetter

from traces import fields
from traces.formats.base import Context, Format, Record
from traces.hashing import name_id
from traces.request import Request


def _parse(record: Record, context: Context) -> list[Request]:
    """All requests of a session and its sub-agents, by time; each sub-agent is a session too.

    Ids count for the record alone, unless ``hash_id_scope`` is ``global``. Some files have times of
    sub-agents that count from their start: they are taken so where one lies before that start.
    Requests without tokens are left out; blocks without an id are nowhere else.

    Raises:
        ValueError: a field is wrong, or the block is not the one that is read.
    """
    block = fields.whole(record, "block_size", 1)
    if block != context.block:
        raise ValueError(f"block_size is {block}, but blocks of {context.block} are read")
    own = 0 if record.get("hash_id_scope") == "global" else name_id("ids of", context.place)
    session = fields.session(record, "id") or context.place
    items = _items(record)
    relative = any(_starts_before(item) for item in items)
    found = _requests(items, session, 0.0, own, relative, context)
    return sorted(found, key=attrgetter("timestamp_ms"))


def _requests(
    items: list[Record], session: str, start: float, own: int, relative: bool, context: Context
) -> Iterator[Request]:
    for number, item in enumerate(items):
        if item.get("type") == "subagent":
            agent = fields.session(item, "agent_id") or str(number)
            begun = start + context.time_ms(item, "t", "s") if relative else 0.0
            yield from _requests(_items(item), f"{session}/{agent}", begun, own, relative, context)
        elif length := fields.whole(item, "in", 0):
            full = length // context.block
            ids = fields.ids(item, "hash_ids") if item.get("hash_ids") is not None else ()
            known = [(id + own) & fields.MAX_ID for id in ids[:full]]
            unknown = range(len(known), full)
            known += [name_id("unknown", context.place, session, number, at) for at in unknown]
            yield Request(
                timestamp_ms=start + context.time_ms(item, "t", "s"),
                session=session,
                input_length=length,
                output_length=fields.whole(item, "out", 0),
                prompt_ids=tuple(known),
                output_ids=(),
            )


def _items(holder: Record) -> list[Record]:
    """Requests and sub-agents; some tables hold each as JSON text."""
    items = fields.required(holder, "requests")
    if not isinstance(items, list):
        raise ValueError(f"requests is {fields.brief(items)}, no list")
    texts = (json.loads(item) if isinstance(item, str) else item for item in items)
    return [fields.mapping(item) for item in texts]


def _starts_before(item: Record) -> bool:
    """Whether a sub-agent has a request before its own start."""
    if item.get("type") != "subagent" or item.get("t") is None:
        return False
    start = fields.milliseconds(item["t"], "s", "t")
    return any(
        fields.milliseconds(inner["t"], "s", "t") < start
        for inner in _items(item)
        if inner.get("t") is not None
    )


KV_CACHE_TESTER = Format(
    "kv-cache-tester",
    _parse,
    recognises=lambda record: {"requests", "block_size"} <= record.keys(),
    files="[kv-cache-tester's](https://github.com/callanjfox/kv-cache-tester) session files, one "
    "or a folder; InferenceX's agent traces (`cc-traces-weka-*`), a session a line",
    taken="block hashes, of `block_size` tokens; ids count for their session alone, but for "
    "`hash_id_scope` `global`",
    time="s within a session; its start is made up",
    session="`id`, and `id/agent_id` for sub-agents",
    cut="objects",
    openings=(b'"hash_id_scope"', b'"block_size"'),
    whole_sessions=True,
    block_field="block_size",
    reveals=True,
)
