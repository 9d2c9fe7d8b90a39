"""What a request may say of what follows it: read from its ``custom_params``, and nothing else is.

The form is ``{"marconi": {"last": true}}`` (nothing follows: its session is over) or
``{"marconi": {"returns_in": 30}}`` (its session goes on in so many seconds). A hint is evidence: it
puts what the request leaves into a class of its own, whose odds of reuse are learnt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

#: The entry of ``custom_params`` that holds a hint.
FIELD = "marconi"
#: Seconds until a session goes on, up to which it counts as soon, and as later.
SOON_SECONDS, LATER_SECONDS = 10.0, 100.0


class Hint(Enum):
    """What was said, as far as odds tell it apart."""

    # That of Enum hashes the name, in Python code, wherever a hint is part of a key.
    __hash__ = object.__hash__

    #: The client: nothing follows.
    LAST = "last"
    #: The client: the session goes on in up to ``SOON_SECONDS``, ``LATER_SECONDS``, or more.
    SOON = "soon"
    LATER = "later"
    LONG = "long"
    #: The client closed the session.
    CLOSED = "closed"
    #: The request was aborted: a client that hung up may be gone, or try again.
    ABORTED = "aborted"

    @property
    def ends(self) -> bool:
        """It says that a session is over."""
        return self is Hint.LAST or self is Hint.CLOSED


@dataclass(frozen=True, slots=True)
class Reading:
    """What a request's ``custom_params`` say.

    Attributes:
        malformed: there is something under ``FIELD`` that is no hint; it is ignored.
    """

    hint: Hint | None = None
    malformed: bool = False


_NOTHING, _MALFORMED = Reading(), Reading(malformed=True)


def read_hint(custom_params: object) -> Reading:
    """Read the hint of a request; any value may be given, and none raises."""
    if not isinstance(custom_params, dict) or custom_params.get(FIELD) is None:
        return _NOTHING
    said = custom_params[FIELD]
    if not isinstance(said, dict) or len(said) > 1:
        return _MALFORMED
    for name, value in said.items():
        if name == "last" and isinstance(value, bool):
            return Reading(Hint.LAST) if value else _NOTHING
        if name == "returns_in" and _is_time(value):
            return Reading(returning_in(value))
        return _MALFORMED
    return _NOTHING


def returning_in(seconds: float) -> Hint:
    """The hint of a session that goes on in so many seconds."""
    if seconds <= SOON_SECONDS:
        return Hint.SOON
    return Hint.LATER if seconds <= LATER_SECONDS else Hint.LONG


def _is_time(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value >= 0 and (isinstance(value, int) or math.isfinite(value))
