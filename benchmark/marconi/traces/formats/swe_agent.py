"""Trajectories of SWE-agent and mini-swe-agent: one request for each call of the model."""

from __future__ import annotations

from collections.abc import Iterator

from traces import fields
from traces.chat import Message, answer_tokens, plain_messages, prompt_tokens
from traces.formats.base import Context, Format, Record
from traces.hashing import token_request
from traces.request import Request

#: Prompt, answer, tool time (ms) after it, and when the prompt was sent, where that is known.
Call = tuple[list[Message], str, float, float | None]


def _parse(record: Record, context: Context) -> list[Request]:
    """Times count from the session's start, by the messages' own times where there are any.

    Else made up: the model's answer, then the tool's work.
    """
    rng = context.timing.session_rng(context.number)
    session = fields.session(record, "instance_id") or context.place
    clock, first = 0.0, None
    found = []
    for messages, answer, tool_ms, sent in _calls(record, context):
        if sent is not None:
            first = sent if first is None else first
            clock = max(clock, round(sent - first, 3))
        prompt = prompt_tokens(context.text, messages)
        output = answer_tokens(context.text, messages, prompt, answer)
        found.append(token_request(clock, session, prompt, output, context.block))
        if sent is None:
            clock += context.timing.response_ms(rng) + tool_ms
    return found


def _calls(record: Record, context: Context) -> Iterator[Call]:
    """Each call of the model.

    Since SWE-agent 1.1 a step has ``query``, exactly what the model saw. Older files, and those of
    mini-swe-agent, have the history alone: each of its assistant messages (demonstrations apart)
    answers all that comes before it, which overlooks what a history processor elided.
    """
    steps = record.get("trajectory")
    if isinstance(steps, list) and any(isinstance(s, dict) and s.get("query") for s in steps):
        for step in map(fields.mapping, steps):
            # A step whose query is empty, [] or [{}], did not call the model.
            if any(step.get("query") or ()):
                yield plain_messages(step["query"]), _answer(step), _tool_ms(step), None
        return
    known = (record.get("history"), record.get("messages"), record.get(""), steps)
    history = next((messages for messages in known if messages), None)
    if not isinstance(history, list):
        raise ValueError("neither a trajectory with queries, nor history or messages")
    messages = plain_messages(history)
    for index, message in enumerate(messages):
        if index and message["role"] == "assistant" and not history[index].get("is_demo"):
            sent = _said_ms(history[index - 1], context)
            yield messages[:index], message["content"], 0.0, sent


def _said_ms(message: Record, context: Context) -> float | None:
    """When a message of mini-swe-agent was said."""
    extra = message.get("extra")
    for holder in (message, extra if isinstance(extra, dict) else {}):
        if holder.get("timestamp") is not None:
            return context.time_ms(holder, "timestamp", "unix")
    return None


def _answer(step: Record) -> str:
    answer = step.get("response") or ""
    if not isinstance(answer, str):
        raise ValueError(f"response is {fields.brief(answer)}, no text")
    return answer


def _tool_ms(step: Record) -> float:
    return fields.finite(step, "execution_time") * 1000 if "execution_time" in step else 0.0


def _recognises(record: Record) -> bool:
    if isinstance(record.get("trajectory"), list) or isinstance(record.get("history"), list):
        return True
    if _is_message(record):
        return True
    named = {"trajectory_format", "instance_id", "info"} & record.keys()
    return bool(named) and isinstance(record.get("messages"), list)


def _is_message(record: Record) -> bool:
    return isinstance(record.get("role"), str) and "content" in record


SWE_AGENT = Format(
    "swe-agent",
    _parse,
    recognises=_recognises,
    files="trajectories of [SWE-agent](https://github.com/SWE-agent/SWE-agent) (`.traj`) and "
    "[mini-swe-agent](https://github.com/SWE-agent/mini-swe-agent) (`.traj.json`), a file or a "
    "folder with sub-folders; lists of messages, by `instance_id` or alone",
    taken="tokens of messages and answers, by `--tokenizer`; before SWE-agent 1.1 as if nothing "
    "had been elided",
    time="within a session, where messages have a time; else made up but for tools",
    session="`instance_id`, else the file",
    cut="document",
    is_part=_is_message,
    openings=(b'"trajectory"', b'"history"', b'"trajectory_format"'),
    whole_sessions=True,
    needs_tokenizer=True,
)
