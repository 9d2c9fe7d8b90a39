"""Times of request files that give a session's later requests as a delay after the one before."""

from __future__ import annotations

from traces.formats.base import Context, Record

_UNIT = "ms"


def arrival_ms(record: Record, context: Context, session: str | None) -> float:
    """When a request arrives: its ``timestamp``, or its ``delay`` after the session's last answer.

    The answer takes the exponential time of the made-up arrivals. A record with neither comes in
    its turn of even arrivals, or after its session's last answer.

    Raises:
        ValueError: the field is no time.
    """
    last = None if session is None else context.memory.get(("last", session))
    if record.get("timestamp") is not None:
        arrival = context.time_ms(record, "timestamp", _UNIT)
    elif last is None:
        arrival = context.evenly_ms()
    else:
        delay = 0.0
        if record.get("delay") is not None:
            delay = context.time_ms(record, "delay", _UNIT)
        answer = context.timing.response_ms(context.timing.session_rng(context.number))
        arrival = round(last + delay + answer, 3)
    if session is not None:
        context.memory["last", session] = arrival
    return arrival
