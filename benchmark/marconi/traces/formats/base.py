"""What a trace format is: how its file is cut, and how a piece becomes requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from traces.request import Request
from traces.timing import Timing


@dataclass(frozen=True)
class Context:
    """What a reader knows besides the record.

    Attributes:
        block: tokens of a block.
        tokenizer: a Hugging Face tokenizer, or None where none was given.
        timing: arrivals for formats without times.
        place: names the piece in its trace (file stem and line), for sessions without a name.
        number: of the piece, from 1.
    """

    block: int
    tokenizer: Any = None
    timing: Timing = field(default_factory=Timing)
    place: str = ""
    number: int = 1


Record = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A trace format.

    Attributes:
        name: as ``--format`` takes it.
        parse: requests of one record, each checked; raises ValueError for a bad one.
        recognises: whether a file that begins with this record is of this format.
        cut: a record a line, or a record an outermost object wherever lines end.
        whole_sessions: a record is a whole session whose times count from its start; without, a
            record is one request, or none, with its own time.
        needs_tokenizer: always; a format that needs one for some records only says so in ``parse``.
        block: tokens of a block where the caller does not say.
        window: how many places late a request may stand in the file; longer delays are raised to
            the time of the request before.
        decode: what comes before JSON is parsed: a line's JSON text, or None for a line of no
            concern.
    """

    name: str
    parse: Callable[[Record, Context], Sequence[Request]]
    recognises: Callable[[Record], bool]
    cut: Literal["lines", "objects"] = "lines"
    whole_sessions: bool = False
    needs_tokenizer: bool = False
    block: int = 64
    window: int = 0
    decode: Callable[[str], str | None] = lambda line: line
