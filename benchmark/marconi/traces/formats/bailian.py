"""Alibaba's Qwen-Bailian usage traces: block ids of 16 tokens, chats that name their parents."""

from __future__ import annotations

from traces import fields
from traces.formats.base import Context, Format, Record
from traces.formats.blocks import hashed_request
from traces.request import Request


def _parse(record: Record, context: Context) -> list[Request]:
    """One request; its session is the chat that its parents lead to.

    A parent that the file does not hold, or holds later, is taken for the first chat.
    """
    arrival = context.time_ms(record, "timestamp", "s")
    chat = fields.required(record, "chat_id")
    parent = fields.required(record, "parent_chat_id")
    if type(chat) is not int or type(parent) is not int:
        raise ValueError("chat_id and parent_chat_id are no whole numbers")
    root = chat if parent < 0 else context.memory.get(parent, parent)
    request = hashed_request(record, context, arrival, session=str(root))
    context.memory[chat] = root
    return [request]


BAILIAN = Format(
    "bailian",
    _parse,
    recognises=lambda record: {"chat_id", "parent_chat_id", "timestamp"} <= record.keys(),
    files="[Alibaba's usage traces](https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon), "
    "`qwen_*_blksz_16.jsonl`",
    taken="block hashes, of 16 tokens",
    time="s",
    session="the first chat, by `parent_chat_id`",
    block=16,
    reveals=True,
)
