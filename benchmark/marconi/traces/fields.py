"""Checked access to the fields of a JSON record: a wrong one raises ValueError and says why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

#: Block ids fit a signed 64-bit integer, the type of a radix cache's keys.
MAX_ID = 2**63 - 1
MAX_TOKEN = 2**32 - 1
#: Milliseconds of the units that a time can have.
UNITS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
# From this size on a time since 1970 has this unit: as the next it would lie after the year 5138.
_LEAST_UNIX = {"ns": 1e17, "us": 1e14, "ms": 1e11, "s": 0.0}


def mapping(value: object) -> Mapping[str, Any]:
    """The value, if it is a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {brief(value)}")
    return value


def required(record: Mapping[str, Any], name: str) -> Any:
    """The field's value, whatever its type."""
    if name not in record:
        raise ValueError(f"{name} is missing")
    return record[name]


def whole(record: Mapping[str, Any], name: str, least: int) -> int:
    """A whole number, ``least`` or more."""
    value = required(record, name)
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is {brief(value)}; allowed are whole numbers from {least}")
    return value


def finite(record: Mapping[str, Any], name: str) -> float:
    """A finite number, 0 or more."""
    value = required(record, name)
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {brief(value)}; allowed are finite numbers from 0")
    return float(value)


def milliseconds(value: object, unit: str, name: str = "timestamp") -> float:
    """Milliseconds of a time: a number, a number as text, or ISO 8601 text.

    Text without an offset is taken as UTC, so that the result does not depend on the machine.

    Args:
        unit: of a number, one of ``UNITS``; ``unix`` goes by its size.
        name: of the field, for the error message.

    Raises:
        ValueError: none of these, or a time before 0.
    """
    number = math.nan
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number, unit = _iso(value), "ms"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = value
    if not 0 <= number < math.inf:
        raise ValueError(
            f"{name} is {brief(value)}; allowed are finite numbers from 0 and ISO 8601 times"
        )
    if unit == "unix":
        unit = next(unit for unit, least in _LEAST_UNIX.items() if number >= least)
    return round(number * UNITS[unit], 6)


def _iso(text: str) -> float:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    return parsed.timestamp() * 1000


def ids(record: Mapping[str, Any], name: str, most: int = MAX_ID) -> tuple[int, ...]:
    """A list of whole numbers from 0 to ``most``."""
    values = required(record, name)
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} is {brief(values)}, no list")
    if values and (set(map(type, values)) != {int} or min(values) < 0 or max(values) > most):
        raise ValueError(f"{name} has an entry that is no whole number from 0 to {most}")
    return tuple(values)


def session(record: Mapping[str, Any], *names: str) -> str | None:
    """The first of the fields that is set, as text."""
    for name in names:
        value = record.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"{name} is {brief(value)}; allowed are text and whole numbers")
        return str(value)
    return None


def one_of(record: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str | None:
    """One of these texts, ``None`` where the field is missing."""
    value = record.get(name)
    if value is None or (isinstance(value, str) and value in allowed):
        return value
    raise ValueError(f"{name} is {brief(value)}; allowed are {', '.join(allowed)}")


def brief(value: object) -> str:
    """The value for an error message, cut to 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
