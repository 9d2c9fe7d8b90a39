"""OpenAI-style chat logs: a line or file is a request with messages and the answer to it."""

from __future__ import annotations

from typing import Any

from traces import fields
from traces.chat import answer_tokens, content_text, plain_messages, prompt_tokens
from traces.formats.base import Context, Format, Record
from traces.hashing import token_request
from traces.request import Request

_SESSIONS = ("session_id", "session", "conversation_id", "user")
_TIMES = ("timestamp", "created", "created_at")


def _parse(record: Record, context: Context) -> list[Request]:
    """One request.

    Messages stand in the record itself, in ``request`` or (batch files) in ``body``; the answer in
    ``choices`` of the record, of ``response`` or of its ``body``. Without a time, requests
    arrive evenly, ``sessions_per_second`` of them.
    """
    request = _inner(record, "request", "body") or record
    messages = plain_messages(request.get("messages"))
    response = _inner(record, "response") or record
    response = _inner(response, "body") or response
    prompt = prompt_tokens(context.text, messages)
    answer = _answer(response)
    output = answer_tokens(context.text, messages, prompt, answer) if answer else ()
    named = fields.session(record, *_SESSIONS) or fields.session(request, *_SESSIONS)
    named = named or context.folder or None
    return [token_request(_time(record, response, context), named, prompt, output, context.block)]


def _inner(record: Record, *names: str) -> Record | None:
    return next((record[name] for name in names if isinstance(record.get(name), dict)), None)


def _answer(response: Record) -> str:
    choices = response.get("choices")
    if choices is None:
        return ""
    if not isinstance(choices, list) or not choices:
        raise ValueError("choices is empty or no list")
    first = fields.mapping(choices[0])
    message: Any = first.get("message")
    if message is None:
        return content_text(first.get("text"))
    return plain_messages([{"role": "assistant", **fields.mapping(message)}])[0]["content"]


def _time(record: Record, response: Record, context: Context) -> float:
    for holder in (record, response):
        for name in _TIMES:
            if holder.get(name) is not None:
                return context.time_ms(holder, name, "unix")
    return context.evenly_ms()


def _recognises(record: Record) -> bool:
    request = _inner(record, "request", "body") or record
    return isinstance(request.get("messages"), list)


OPENAI = Format(
    "openai",
    _parse,
    recognises=_recognises,
    files="OpenAI-style logs: `messages` (also in `request` or `body`), `choices` (also in "
    "`response`); OpenHands' `llm_completions` folders",
    taken="tokens of prompt and answer, by `--tokenizer`; images are left out",
    time="s, ms, µs or ns since 1970, by size, or ISO 8601; else made up",
    session="`session_id`, `conversation_id` or `user`, else the sub-folder",
    needs_tokenizer=True,
    window=1024,
)
