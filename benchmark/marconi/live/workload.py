"""Which requests of a trace are sent, and how long they are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from traces import Request


@dataclass(frozen=True)
class Turn:
    """One request to send: its place in the workload, and the session that it continues.

    A request of no session is a session of its own.
    """

    index: int
    session: str
    request: Request


@dataclass(frozen=True)
class Selection:
    """What to take of a trace; None takes all.

    Attributes:
        sessions: only the sessions that start first.
        limit: only so many requests.
        max_input_tokens: a session ends at its first prompt longer than this, after scaling.
        divisor: lengths are divided by it, block by block.
        block: tokens a block id stands for in the trace.
    """

    sessions: int | None = None
    limit: int | None = None
    max_input_tokens: int | None = None
    divisor: int = 1
    block: int = 64

    @property
    def scaled_block(self) -> int:
        """Tokens that a block id stands for in what is sent.

        Raises:
            ValueError: the block cannot be divided.
        """
        if self.divisor < 1 or self.block % self.divisor:
            raise ValueError(
                f"--scale-lengths is {self.divisor}; allowed are divisors of --block {self.block}"
            )
        return self.block // self.divisor

    def turns(self, requests: Iterable[Request]) -> list[Turn]:
        """The selected requests, in the trace's order."""
        turns: list[Turn] = []
        known: set[str] = set()
        ended: set[str] = set()
        longest = math.inf if self.max_input_tokens is None else self.max_input_tokens
        for number, whole in enumerate(requests):
            if self.limit is not None and len(turns) >= self.limit:
                break
            session = f"request {number}" if whole.session is None else whole.session
            if session not in known:
                if self.sessions is not None and len(known) >= self.sessions:
                    continue
                known.add(session)
            request = scaled(whole, self.divisor)
            if request.input_length > longest:
                ended.add(session)
            if session not in ended:
                turns.append(Turn(len(turns), session, request))
        return turns


def scaled(request: Request, divisor: int) -> Request:
    """The request with its lengths divided; shared prefixes stay shared, at a divided length.

    A reply may shrink to no token.
    """
    if divisor == 1:
        return request
    length = max(request.input_length // divisor, 1)
    history = max((request.input_length + request.output_length) // divisor, length)
    tokens, answer = request.input_tokens, request.output_tokens
    return replace(
        request,
        input_length=length,
        output_length=history - length,
        input_tokens=None if tokens is None else tokens[::divisor][:length],
        output_tokens=None if answer is None else answer[::divisor][: history - length],
    )
