"""ShareGPT's conversations, and vLLM's: each assistant turn is a request after its history."""

from __future__ import annotations

from dataclasses import replace

from traces import fields
from traces.chat import Message, answer_tokens, content_text, prompt_tokens
from traces.formats.base import Context, Format, Record
from traces.hashing import token_request
from traces.request import Request

_TURNS = ("conversations", "conversation", "items", "messages")
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
}


def _parse(record: Record, context: Context) -> list[Request]:
    """Times count from the session's start: typing before each prompt, the answer after it."""
    messages = [_message(turn) for turn in _turns(record)]
    session = fields.session(record, "id") or context.place
    rng = context.timing.session_rng(context.number)
    clock, words = 0.0, 0
    found = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            words += len(message["content"].split())
        elif index:
            clock += context.timing.typing_ms(words)
            words = 0
            history = messages[:index]
            prompt = prompt_tokens(context.text, history)
            answer = answer_tokens(context.text, history, prompt, message["content"])
            found.append(token_request(clock, session, prompt, answer, context.block))
            clock += context.timing.response_ms(rng)
    return found


def _turns(record: Record) -> list[object]:
    for name in _TURNS:
        if isinstance(record.get(name), list):
            turns: list[object] = record[name]
            return turns
    raise ValueError("conversations is missing or no list")


def _message(turn: object) -> Message:
    fielded = fields.mapping(turn)
    role = fielded.get("from", fielded.get("role"))
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"a turn is from {fields.brief(role)}; known are {', '.join(_ROLES)}")
    return {
        "role": _ROLES[role],
        "content": content_text(fielded.get("value", fielded.get("content"))),
    }


SHAREGPT = Format(
    "sharegpt",
    _parse,
    recognises=lambda record: any(isinstance(record.get(name), list) for name in _TURNS[:3]),
    files="ShareGPT's conversations, a JSON list or lines",
    taken="tokens of turns, by `--tokenizer`",
    time="made up",
    session="`id`, else the place in the file",
    cut="objects",
    openings=(b'"conversations"',),
    whole_sessions=True,
    needs_tokenizer=True,
)

VLLM_MULTI_TURN = replace(
    SHAREGPT,
    name="vllm-multi-turn",
    recognises=lambda record: (
        record.keys() == {"id", "messages"} and isinstance(record["messages"], list)
    ),
    files="conversations for vLLM's `benchmark_serving_multi_turn.py`: a JSON list of `id` and "
    "`messages`",
    session="`id`",
    openings=(),
)
