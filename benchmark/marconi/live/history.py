"""Builds each prompt of a session on the replies that the server really gave.

A trace names its tokens by position; a server's reply may be shorter or longer than the trace's,
so a position of the trace and the place of its token in what was really said may differ.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from traces import Request
from traces.expand import expand_block


@dataclass(frozen=True)
class TokenSource:
    """The tokens that a trace stands for.

    Attributes:
        block: tokens for which one block id stands.
        vocab_size: token ids are below it, where the trace names blocks only.
    """

    block: int
    vocab_size: int

    def prompt(self, name: str, request: Request, start: int, end: int) -> list[int]:
        """Tokens ``start`` to ``end`` of the trace's prompt.

        Those behind the last full block, which no id names, are the same for every request of
        the session ``name``, and of no other.
        """
        if request.input_tokens is not None:
            return list(request.input_tokens[start:end])
        tokens: list[int] = []
        first = start // self.block
        for place in range(first, -(-end // self.block)):
            tokens += expand_block(self._id(name, request, place), self.block, self.vocab_size)
        return tokens[start - first * self.block : end - first * self.block]

    def _id(self, name: str, request: Request, place: int) -> int:
        if place < len(request.prompt_ids):
            return request.prompt_ids[place]
        return zlib.crc32(f"{name} {place}".encode()) + (1 << 40)


@dataclass(frozen=True)
class _Reply:
    """Where a reply lies: in the trace's positions, and in what was really said."""

    start: int
    end: int
    said_start: int
    said_end: int


class Conversation:
    """One session on one server."""

    def __init__(self, name: str, source: TokenSource) -> None:
        self.name = name
        self._source = source
        self._last: Request | None = None
        self._said: list[int] = []
        self._replies: list[_Reply] = []

    def prompt(self, request: Request) -> list[int]:
        """The next prompt: all that was said and is still in it, then the trace's new tokens.

        Where the trace's prompt leaves its own history (an edit, an elision, a new start), the
        trace's tokens are used from there on.
        """
        shared = 0 if self._last is None else self._shared(self._last, request)
        new = self._source.prompt(self.name, request, shared, request.input_length)
        return self._said[: self._place(shared)] + new

    def answered(self, request: Request, prompt: Sequence[int], reply: Sequence[int]) -> None:
        """``prompt``, which :meth:`prompt` gave for ``request``, was answered with ``reply``."""
        shared = 0 if self._last is None else self._shared(self._last, request)
        kept = [
            _Reply(
                old.start,
                min(old.end, shared),
                old.said_start,
                old.said_end if old.end <= shared else self._place(shared),
            )
            for old in self._replies
            if old.start < shared
        ]
        end = request.input_length + request.output_length
        said = len(prompt) + len(reply)
        self._replies = [*kept, _Reply(request.input_length, end, len(prompt), said)]
        self._said = [*prompt, *reply]
        self._last = request

    def _shared(self, last: Request, request: Request) -> int:
        """Leading tokens of the prompt that are the last request's prompt and reply."""
        length = last.input_length + last.output_length
        if request.input_tokens is not None and last.input_tokens is not None:
            told = last.input_tokens + (last.output_tokens or ())
            known = common_prefix(told, request.input_tokens)
            whole = known == len(told)
        else:
            ids = last.prompt_ids + last.output_ids
            same = common_prefix(ids, request.prompt_ids)
            known, whole = same * self._source.block, same == len(ids)
        if whole and request.input_length >= length:
            return length
        return min(known, request.input_length)

    def _place(self, position: int) -> int:
        """Where in what was said the trace's ``position`` lies."""
        for reply in reversed(self._replies):
            if position >= reply.end:
                return reply.said_end + position - reply.end
            if position > reply.start:
                return min(reply.said_start + position - reply.start, reply.said_end)
        return position


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading elements are equal."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))
