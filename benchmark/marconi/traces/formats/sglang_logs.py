"""SGLang's request logs: ``--log-requests --log-requests-format json``, level 3.

Only ``request.finished`` events count: they have the prompt, the answer and, in ``meta_info``,
their lengths. Levels 0 and 1 write no prompt, level 2 cuts one longer than 2,048 tokens or
characters: such requests are refused rather than guessed. The log's other lines are passed over.
"""

from __future__ import annotations

import re
from typing import Any

from traces import fields
from traces.formats.base import Context, Format, Record
from traces.hashing import token_request
from traces.request import Request

_FINISHED = re.compile(r'"event":\s*"request\.finished"')
_CUT_CHARACTERS = 2048


def _decode(line: str) -> str | None:
    """The JSON of a finished request, without the log's time before it."""
    return line[line.index("{") :] if "{" in line and _FINISHED.search(line) else None


def _parse(record: Record, context: Context) -> list[Request]:
    asked = fields.mapping(fields.required(record, "obj"))
    out = fields.mapping(fields.required(record, "out"))
    meta = fields.mapping(out.get("meta_info") or {})
    prompt = _tokens(asked, "input_ids", context, meta.get("prompt_tokens"))
    output = _tokens(out, "output_ids", context, meta.get("completion_tokens"))
    params = asked.get("session_params")
    session = fields.session(asked, "session_id")
    if session is None and isinstance(params, dict):
        session = fields.session(params, "id")
    return [token_request(_arrival(record, meta, context), session, prompt, output, context.block)]


def _tokens(holder: Record, name: str, context: Context, logged: Any) -> tuple[int, ...]:
    """Token ids of a prompt or an answer, from the ids or, where there are none, from the text."""
    values = holder.get(name)
    if values is not None:
        if isinstance(values, list) and "..." in values:
            raise ValueError(f"{name} was cut by the log; use --log-requests-level 3")
        tokens = fields.ids(holder, name, fields.MAX_TOKEN)
        if logged is not None and len(tokens) != logged:
            raise ValueError(f"{name} has {len(tokens)} entries, meta_info says {logged}")
        return tokens
    text = holder.get("text")
    if not isinstance(text, str):
        raise ValueError(f"neither {name} nor text was logged; use --log-requests-level 3")
    if len(text) == _CUT_CHARACTERS + 3 and text[_CUT_CHARACTERS // 2 :].startswith("..."):
        raise ValueError("text was cut by the log; use --log-requests-level 3")
    if context.encoder is None:
        raise ValueError(f"{name} was not logged, so that --tokenizer is needed for the text")
    # A prompt gets the special tokens that the server adds to a text, an answer does not.
    if name == "input_ids":
        return tuple(context.encoder.tokenizer.encode(text))
    return context.encoder.encode(text)


def _arrival(record: Record, meta: Record, context: Context) -> float:
    if meta.get("request_received_ts") is not None:
        return round(context.time_ms(meta, "request_received_ts", "unix"), 3)
    took = fields.finite(meta, "e2e_latency") if "e2e_latency" in meta else 0.0
    return round(context.time_ms(record, "timestamp", "unix") - took * 1000, 3)


SGLANG = Format(
    "sglang",
    _parse,
    recognises=lambda record: str(record.get("event", "")).startswith("request."),
    files="SGLang's log of `--log-requests --log-requests-format json --log-requests-level 3`",
    taken="tokens; of logged text, by `--tokenizer`. Requests that never finished are left out",
    time="since 1970, by size, or ISO 8601",
    session="`session_id`",
    window=1024,
    decode=_decode,
)
