"""One request of a trace, as every reader makes it and every user of a trace takes it."""

from __future__ import annotations

from dataclasses import dataclass

#: What may be said of what follows a request.
HINTS = ("last", "soon", "later", "long", "closed", "aborted")


class TraceError(ValueError):
    """A place of a trace is unusable; the message names file, line and what is wrong."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace; lengths in tokens.

    Attributes:
        timestamp_ms: arrival, in milliseconds from any origin that the whole trace shares.
        session: requests of one session follow each other; None where the trace does not say.
        input_length: tokens of the prompt, at least 1.
        output_length: tokens of the answer, 0 or more.
        prompt_ids: one id for each full block of the prompt: two requests share a prefix of k
            blocks exactly when their first k ids are equal.
        output_ids: ids of the blocks that prompt and output fill beyond the prompt's, in order;
            fewer, or none, where the trace does not know them.
        input_tokens: token ids of the prompt, where the trace has them.
        output_tokens: token ids of the answer, where the trace has them.
        hint: what was said of what follows the request, one of ``HINTS``.
    """

    timestamp_ms: float
    session: str | None
    input_length: int
    output_length: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    input_tokens: tuple[int, ...] | None = None
    output_tokens: tuple[int, ...] | None = None
    hint: str | None = None
