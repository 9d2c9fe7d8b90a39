"""SWE-agent's .traj files: one request for each call of the model."""

from __future__ import annotations

from collections.abc import Iterator

from traces import fields
from traces.chat import Message, answer_tokens, plain_messages, prompt_tokens
from traces.formats.base import Context, Format, Record
from traces.hashing import token_request
from traces.request import Request

Call = tuple[list[Message], str, float]


def _parse(record: Record, context: Context) -> list[Request]:
    """Times count from the session's start: the model's answer, then the tool's work."""
    rng = context.timing.session_rng(context.number)
    session = fields.session(record, "instance_id") or context.place
    clock = 0.0
    found = []
    for messages, answer, tool_ms in _calls(record):
        prompt = prompt_tokens(context.tokenizer, messages)
        output = answer_tokens(context.tokenizer, messages, prompt, answer)
        found.append(token_request(clock, session, prompt, output, context.block))
        clock += context.timing.response_ms(rng) + tool_ms
    return found


def _calls(record: Record) -> Iterator[Call]:
    """Prompt, answer and tool time (ms) of each call of the model.

    Since SWE-agent 1.1 a step has ``query``, exactly what the model saw. Older files, and those of
    mini-swe-agent, have the history alone: each of its assistant messages (demonstrations apart)
    answers all that comes before it, which overlooks what a history processor elided.
    """
    steps = record.get("trajectory")
    if isinstance(steps, list) and any(isinstance(s, dict) and s.get("query") for s in steps):
        for step in map(fields.mapping, steps):
            # A step whose query is empty, [] or [{}], did not call the model.
            if any(step.get("query") or ()):
                yield plain_messages(step["query"]), _answer(step), _tool_ms(step)
        return
    history = record.get("history", record.get("messages"))
    if not isinstance(history, list):
        raise ValueError("neither a trajectory with queries, nor history or messages")
    messages = plain_messages(history)
    for index, message in enumerate(messages):
        if index and message["role"] == "assistant" and not history[index].get("is_demo"):
            yield messages[:index], message["content"], 0.0


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
    return "trajectory_format" in record and isinstance(record.get("messages"), list)


SWE_AGENT = Format(
    "swe-agent",
    _parse,
    recognises=_recognises,
    cut="objects",
    whole_sessions=True,
    needs_tokenizer=True,
)
