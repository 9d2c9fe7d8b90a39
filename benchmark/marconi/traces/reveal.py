"""Completes outputs that a trace does not name from the prompts that repeat them.

Where the next request of a session repeats the whole prompt and is long enough to hold the answer
as well, its next blocks are those that prompt and answer fill. That takes two facts on trust, which
block ids alone cannot show: that the tokens after the prompt's last full block are the former
prompt's and answer's, and that the answer was sent back as it was.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from traces.request import Request


@dataclass(slots=True)
class _Waiting:
    """A session's last request: where its blocks go, and what its successor must begin with."""

    index: int
    full: int
    digest: bytes
    tokens: int


class RevealedOutputs:
    """Output blocks of a whole trace, found in one pass over its requests.

    Memory: 9 bytes a request, 8 bytes a block of output, and about 250 bytes a session.
    """

    def __init__(self, requests: Iterable[Request], block: int) -> None:
        self._ids = array("q")
        self._ends = array("q")
        self._known = bytearray()
        waiting: dict[str, _Waiting] = {}
        for index, request in enumerate(requests):
            room = _room(request, block)
            self._ids.extend([0] * room)
            self._ends.append(len(self._ids))
            self._known.append(False)
            if request.session is None:
                continue
            former = waiting.get(request.session)
            if former is not None:
                self._fill(former, request)
            waiting[request.session] = _Waiting(
                index,
                len(request.prompt_ids),
                _digest(request.prompt_ids),
                request.input_length + request.output_length,
            )

    def _fill(self, former: _Waiting, request: Request) -> None:
        begin, end = self._span(former.index)
        if (
            begin < end
            and request.input_length >= former.tokens
            and _digest(request.prompt_ids[: former.full]) == former.digest
        ):
            found = request.prompt_ids[former.full : former.full + end - begin]
            self._ids[begin:end] = array("q", found)
            self._known[former.index] = True

    def _span(self, index: int) -> tuple[int, int]:
        return (self._ends[index - 1] if index else 0), self._ends[index]

    def complete(self, requests: Iterable[Request]) -> Iterator[Request]:
        """The same requests in the same order, with their outputs' blocks where found."""
        for index, request in enumerate(requests):
            if index < len(self._known) and self._known[index]:
                begin, end = self._span(index)
                yield replace(request, output_ids=tuple(self._ids[begin:end]))
            else:
                yield request


def _room(request: Request, block: int) -> int:
    """Blocks to be found: none where the trace names any, or where no session goes on."""
    if request.output_ids or request.session is None:
        return 0
    total = request.input_length + request.output_length
    return total // block - len(request.prompt_ids)


def _digest(ids: tuple[int, ...]) -> bytes:
    return hashlib.blake2b(array("q", ids).tobytes(), digest_size=16).digest()
