"""AIPerf's request files of text: one turn, several turns, messages, a text or a payload a line.

What the model answered is not in them. Where a later prompt repeats it, as with whole ``messages``,
its blocks are found there; where AIPerf would add the live answer, the prompts here go without.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from traces import fields
from traces.chat import Message, plain_messages, prompt_tokens
from traces.formats.base import Context, Format, Record
from traces.formats.delays import arrival_ms
from traces.hashing import token_request
from traces.request import Request

_CONTENTS = ("text_input", "text", "texts", "messages", "payload", "turns")


def _parse(record: Record, context: Context) -> list[Request]:
    session = fields.session(record, "session_id")
    if "turns" not in record:
        arrival = arrival_ms(record, context, session)
        return [_request(record, context, session, arrival, _prompt(record, context, session))]
    turns = record["turns"]
    if not isinstance(turns, list) or not turns:
        raise ValueError("turns is empty or no list")
    session = session or context.place
    found, history = [], []
    for turn in map(fields.mapping, turns):
        history += _spoken(turn)
        arrival = arrival_ms(turn, context, session)
        prompt = prompt_tokens(context.text, history)
        found.append(_request(turn, context, session, arrival, prompt))
    return found


def _request(
    record: Record, context: Context, session: str | None, arrival: float, prompt: tuple[int, ...]
) -> Request:
    answer = fields.whole(record, "output_length", 0) if record.get("output_length") else 0
    request = token_request(arrival, session, prompt, (), context.block)
    return replace(request, output_length=answer, output_tokens=None if answer else ())


def _prompt(record: Record, context: Context, session: str | None) -> tuple[int, ...]:
    payload = record.get("payload")
    if isinstance(payload, dict):
        return _prompt({**payload, "text_input": payload.get("prompt")}, context, session)
    if isinstance(record.get("text_input"), str):
        return context.text.encode(record["text_input"])
    messages = plain_messages(record["messages"]) if record.get("messages") else _spoken(record)
    if record.get("message_mode") == "delta" and session is not None:
        messages = context.memory["history", session] = [
            *context.memory.get(("history", session), ()),
            *messages,
        ]
    return prompt_tokens(context.text, messages)


def _spoken(turn: Record) -> list[Message]:
    """The turn's own message.

    Raises:
        ValueError: it has no text.
    """
    parts: Any = turn.get("text") or turn.get("texts")
    parts = [parts] if isinstance(parts, str) else parts
    if not isinstance(parts, list) or not parts:
        raise ValueError(f"none of {', '.join(_CONTENTS)} has text")
    texts = [part if isinstance(part, str) else _contents(part) for part in parts]
    return plain_messages([{"role": turn.get("role") or "user", "content": "".join(texts)}])


def _contents(part: object) -> str:
    contents = fields.mapping(part).get("contents")
    if not isinstance(contents, list) or not all(isinstance(text, str) for text in contents):
        raise ValueError("texts has an entry that is no text")
    return "".join(contents)


def _recognises(record: Record) -> bool:
    if isinstance(record.get("turns"), list) or isinstance(record.get("text_input"), str):
        return True
    if isinstance(record.get("payload"), dict) or isinstance(record.get("text"), str):
        return True
    # Logs of answered requests have messages too.
    return isinstance(record.get("messages"), list) and bool(
        {"output_length", "delay", "message_mode"} & record.keys()
    )


AIPERF = Format(
    "aiperf",
    _parse,
    recognises=_recognises,
    files="request files of text for [AIPerf](https://github.com/ai-dynamo/aiperf) and Dynamo: "
    "`messages`, `text_input`, `text`, `payload` or `turns`",
    taken="tokens of prompts, by `--tokenizer`; answers as `output_length`, their tokens only "
    "where a later prompt repeats them",
    time="ms, `timestamp` or `delay` after an answer of made-up length; else made up",
    session="`session_id`; a line with `turns` is one",
    needs_tokenizer=True,
    reveals=True,
    window=1024,
)
