"""OpenHands' trajectories: the events of a session, or the messages made of them.

A model's answer stands with the actions that it led to. What a condenser took out of the prompts is
not seen here; OpenHands' completion logs have the prompts as they were (format ``openai``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from traces import fields
from traces.chat import Message, answer_tokens, content_text, plain_messages, prompt_tokens
from traces.formats.base import Context, Format, Record
from traces.hashing import token_request
from traces.request import Request


class _Said(NamedTuple):
    """A message, when it was said, and which answer of the model it is part of."""

    message: Message
    at_ms: float
    answer: str | None = None


def _parse(record: Record, context: Context) -> list[Request]:
    """Requests of a session, whose times count from its first event.

    Raises:
        ValueError: there are no events, or they do not say what the model answered.
    """
    session = fields.session(record, "instance_id") or context.place
    events = _flat(_events(record))
    said = list(_conversation(events, context))
    found = []
    for index, (message, _, answer) in enumerate(said):
        if answer is None or not index:
            continue
        history = [one.message for one in said[:index]]
        prompt = prompt_tokens(context.text, history)
        output = answer_tokens(context.text, history, prompt, message["content"])
        arrival = max(said[index - 1].at_ms - said[0].at_ms, 0.0)
        found.append(token_request(arrival, session, prompt, output, context.block))
    if not found:
        raise ValueError(
            "the events do not say what the model answered; read its completion logs instead"
        )
    return found


def _events(record: Record) -> Sequence[Any]:
    events = record.get("", record.get("history", record.get("trajectory")))
    if not isinstance(events, list):
        raise ValueError("neither a list of events, nor history or trajectory with one")
    return events


def _flat(events: Sequence[Any]) -> list[Record]:
    """Older files have pairs of an action and its observation."""
    flat = (one for event in events for one in (event if isinstance(event, list) else [event]))
    return [fields.mapping(event) for event in flat]


def _conversation(events: Sequence[Record], context: Context) -> Iterator[_Said]:
    calls: dict[str, list[Any]] = {}
    asked = {event.get("id") for event in events if "action" in event and _call(event)}
    for event in events:
        if event.get("kind") == "ActionEvent" and event.get("tool_call"):
            calls.setdefault(str(event.get("llm_response_id")), []).append(event["tool_call"])
    answered: set[str] = set()
    clock = 0.0
    for number, event in enumerate(events):
        if event.get("timestamp") is not None:
            clock = max(clock, context.time_ms(event, "timestamp", "unix"))
        found = (
            _of_sdk(event, calls, number) if "kind" in event else _of_server(event, asked, number)
        )
        if found is None:
            continue
        message, answer = found
        if answer is None or answer not in answered:
            yield _Said(message, clock, answer)
        answered.add(answer or "")


def _of_server(event: Record, asked: set[Any], number: int) -> tuple[Message, str | None] | None:
    """What an event of the OpenHands server adds to the conversation, and the answer it is of.

    Args:
        asked: ids of the actions that the model called for; what they caused, it sees.
    """
    arguments = event.get("args") if isinstance(event.get("args"), dict) else {}
    assert isinstance(arguments, dict)
    action, source = event.get("action"), event.get("source")
    if action == "system":
        return _message("system", arguments.get("content")), None
    if action == "message" and source == "user":
        return _message("user", arguments.get("content")), None
    called = _call(event)
    if action is not None and called is not None:
        response = fields.mapping(fields.required(called, "model_response"))
        choice = fields.mapping(fields.required(response, "choices")[0])
        answer = {**fields.mapping(choice["message"]), "role": "assistant"}
        return plain_messages([answer])[0], str(response.get("id", number))
    if action in ("message", "finish") and source == "agent":
        text = arguments.get("content") or arguments.get("final_thought")
        return _message("assistant", text), f"event {number}"
    if "observation" in event and (called is not None or event.get("cause") in asked):
        return _message("tool", event.get("content")), None
    return None


def _call(event: Record) -> Record | None:
    """The call of the model that an action or its observation belongs to."""
    called = event.get("tool_call_metadata")
    return called if isinstance(called, dict) else None


def _of_sdk(
    event: Record, calls: dict[str, list[Any]], number: int
) -> tuple[Message, str | None] | None:
    """The same for an event of the OpenHands SDK; ``calls`` are those of each answer."""
    kind = event["kind"]
    if kind == "SystemPromptEvent":
        return _message("system", [fields.mapping(event.get("system_prompt"))]), None
    if kind == "MessageEvent":
        said = fields.mapping(fields.required(event, "llm_message"))
        if event.get("source") == "agent":
            return _message("assistant", said.get("content")), f"event {number}"
        return _message("user", said.get("content")), None
    if kind == "ActionEvent":
        answer = str(event.get("llm_response_id"))
        text = content_text(event.get("thought"))
        text += json.dumps(calls[answer], ensure_ascii=False) if answer in calls else ""
        return {"role": "assistant", "content": text}, answer
    if kind in ("ObservationEvent", "AgentErrorEvent", "UserRejectObservation"):
        seen = event.get("observation")
        return _message(
            "tool", seen.get("content") if isinstance(seen, dict) else event.get("error")
        ), None
    return None


def _message(role: str, content: Any) -> Message:
    return {"role": role, "content": content_text(content)}


def _has_events(record: object) -> bool:
    if not isinstance(record, dict):
        return False
    events = record.get("history", record.get("trajectory"))
    if not isinstance(events, list) or not events:
        return False
    first = events[0][0] if isinstance(events[0], list) and events[0] else events[0]
    return _is_event(first)


def _is_event(record: object) -> bool:
    if not isinstance(record, dict) or "role" in record:
        return False
    return "source" in record and bool({"action", "observation", "kind"} & record.keys())


OPENHANDS = Format(
    "openhands",
    _parse,
    recognises=lambda record: _is_event(record) or _has_events(record),
    files="[OpenHands'](https://github.com/All-Hands-AI/OpenHands) trajectories: a list of events "
    "(`trajectory.json`), or `output.jsonl` with `history`; a file or a folder",
    taken="tokens of messages and answers, by `--tokenizer`",
    time="ISO 8601 within a session; its start is made up",
    session="`instance_id`, else the file",
    cut="document",
    is_part=_is_event,
    openings=(b'"tool_call_metadata"', b'"llm_message"'),
    whole_sessions=True,
    needs_tokenizer=True,
)
