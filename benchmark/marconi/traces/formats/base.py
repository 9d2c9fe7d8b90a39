"""What a trace format is: how its file is cut, and how a piece becomes requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from traces import fields
from traces.encoder import Encoder
from traces.request import Request
from traces.timing import Timing


@dataclass(frozen=True)
class Context:
    """What a reader knows besides the record.

    Attributes:
        block: tokens of a block.
        encoder: a tokenizer, or None where none was given.
        timing: arrivals for formats without times.
        place: names the piece in its trace (file stem and line), for sessions without a name.
        folder: the piece's folder in a trace that is one, else empty.
        number: of the piece, from 1.
        time_unit: of the trace's numbers, where the caller overrules the format.
        memory: what a format keeps from one record to the next of a reading.
    """

    block: int
    encoder: Encoder | None = None
    timing: Timing = field(default_factory=Timing)
    place: str = ""
    folder: str = ""
    number: int = 1
    time_unit: str | None = None
    memory: dict[Any, Any] = field(default_factory=dict)

    def time_ms(self, record: Record, name: str, unit: str) -> float:
        """The field's time in milliseconds, where its numbers have this unit by default.

        Raises:
            ValueError: it is missing, or no time.
        """
        value = fields.required(record, name)
        return fields.milliseconds(value, self.time_unit or unit, name)

    @property
    def text(self) -> Encoder:
        """The tokenizer of a format that needs one.

        Raises:
            ValueError: there is none.
        """
        if self.encoder is None:
            raise ValueError("this is text, which needs --tokenizer")
        return self.encoder

    def evenly_ms(self) -> float:
        """A made-up arrival: ``sessions_per_second`` records a second."""
        return round((self.number - 1) * 1000 / self.timing.sessions_per_second, 3)


Record = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A trace format.

    Attributes:
        name: as ``--format`` takes it.
        parse: requests of one record, each checked; raises ValueError for a bad one.
        recognises: whether a file that begins with this record is of this format.
        files, taken, time, session: what the docs' table says: which files have it, what is taken
            from them, their unit of time, what names a session.
        cut: a record a line, a record an outermost object wherever lines end, or (but in .jsonl
            files) the whole file. A .json file is never cut into lines.
        is_part: of a file that is a list: whether its objects are parts of one session, the list
            then being the field of no name of one record; else each object is a record.
        openings: any of these bytes tells a file of one object too long to be looked at.
        whole_sessions: a record is a whole session whose times count from its start; without, a
            record is one request, or some, with their own times.
        needs_tokenizer: always; a format that needs one for some records only says so in ``parse``.
        block: tokens of a block where neither the caller nor the file says.
        block_field: the field in which a file says it.
        reveals: outputs that no record names may be taken from the session's next prompt.
        window: how many places late a request may stand in the file; longer delays are raised to
            the time of the request before.
        decode: what comes before JSON is parsed: a line's JSON text, or None for a line of no
            concern.
    """

    name: str
    parse: Callable[[Record, Context], Sequence[Request]]
    recognises: Callable[[Record], bool]
    files: str
    taken: str
    time: str
    session: str
    cut: Literal["lines", "objects", "document"] = "lines"
    is_part: Callable[[Record], bool] = lambda record: False
    openings: tuple[bytes, ...] = ()
    whole_sessions: bool = False
    needs_tokenizer: bool = False
    block: int = 64
    block_field: str | None = None
    reveals: bool = False
    window: int = 0
    decode: Callable[[str], str | None] = lambda line: line
