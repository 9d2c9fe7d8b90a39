"""A figure in prose: ``ID.KEY``, or two of them with - / + or * between, and how it is printed."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from rows.store import Rows

_REFERENCE = r"[a-z0-9]+(?:[-/][a-z0-9]+)*\.[a-z0-9_]+(?:\.[a-z0-9_]+)*"
_FIGURE = re.compile(
    rf"(?P<first>{_REFERENCE})(?:\s+(?P<sign>[-/+*])\s+(?P<second>{_REFERENCE}))?(?P<form>:.*)?"
)
_SIGNS: dict[str, Callable[[float, float], float]] = {
    "-": operator.sub,
    "/": operator.truediv,
    "+": operator.add,
    "*": operator.mul,
}
DEFAULT_FORMAT = ".1f"


class FigureError(ValueError):
    """A figure that cannot be printed; the message says which and why."""


def printed(figure: str, rows: Rows) -> str:
    """What stands in the page for ``figure``.

    Args:
        figure: ``ID.KEY[:FORMAT]`` or ``ID.KEY - ID.KEY[:FORMAT]``; the format is Python's, by
            default ``.1f``. Text is printed as it is.

    Raises:
        FigureError: it is written otherwise, a row or key does not exist, or the format is none.
    """
    found = _FIGURE.fullmatch(figure.strip())
    if found is None:
        raise FigureError(f"{figure!r} is no figure; allowed is ID.KEY[:FORMAT] or two with a sign")
    form = (found["form"] or f":{DEFAULT_FORMAT}")[1:]
    try:
        if found["sign"] is None:
            value = rows.value(*_parts(found["first"]))
            if isinstance(value, str) and found["form"] is None:
                return value
            value = rows.number(*_parts(found["first"]))
        else:
            value = _SIGNS[found["sign"]](
                rows.number(*_parts(found["first"])), rows.number(*_parts(found["second"]))
            )
        return number_text(value, form)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        reason = error.args[0] if error.args else error
        raise FigureError(f"{figure!r}: {reason}") from error


def number_text(value: float, form: str) -> str:
    """A number by a format of Python's; what is rounded to nothing has no minus.

    Raises:
        ValueError: no format.
    """
    text = format(value, form)
    return format(0.0, form) if re.fullmatch(r"-0(\.0*)?%?", text) else text


def _parts(reference: str) -> tuple[str, str]:
    identity, _, key = reference.partition(".")
    return identity, key
