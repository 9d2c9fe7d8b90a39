"""What clients say of what follows: as the trace has it, as it turns out to be, or wrongly."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from traces import Request

from lab.losses import chain_hashes
from lab.spec import RunSpec

#: As ``--hints`` takes them; ``wrong:SHARE`` and ``wrong:SHARE:SEED`` beside them.
TRACE, NONE, TRUE, WRONG = "trace", "none", "true", "wrong"
ALLOWED = f"{TRACE}, {NONE}, {TRUE}, and {WRONG}:SHARE[:SEED] with a share from 0 to 1"


def check_hints(text: str) -> tuple[float, int] | None:
    """The share of wrong hints of a value of ``--hints``, and the seed that they are drawn with.

    ``None`` where none is made.

    Raises:
        ValueError: it is no such value.
    """
    if text in (TRACE, NONE):
        return None
    if text == TRUE:
        return 0.0, 0
    name, _, numbers = text.partition(":")
    share, _, seed = numbers.partition(":")
    try:
        wrong = (float(share), int(seed or 0)) if name == WRONG else (math.nan, 0)
    except ValueError:
        wrong = (math.nan, 0)
    if not 0 <= wrong[0] <= 1:
        raise ValueError(f"--hints is {text!r}; allowed are {ALLOWED}")
    return wrong


def hinted(requests: Iterable[Request], spec: RunSpec) -> Iterator[Request]:
    """The requests with the hints that a spec asks for.

    ``true`` hints say ``last`` of a request whose whole prompt no later request of the trace
    begins with; for this the trace is read once more. ``wrong:SHARE`` turns the hint of so many
    requests, drawn at random, into its opposite: at 0.5 they say nothing.
    """
    wrong = check_hints(spec.hints)
    if wrong is None:
        drop = spec.hints == NONE
        yield from (replace(one, hint=None) if drop and one.hint else one for one in requests)
        return
    last = last_requests(spec.requests(), spec.block)
    share, seed = wrong
    draw = random.Random(seed)
    for index, request in enumerate(requests):
        says_last = (index in last) != (draw.random() < share)
        yield replace(request, hint="last" if says_last else None)


def last_requests(requests: Iterable[Request], block: int) -> set[int]:
    """Places in the trace of the requests whose whole prompt no later one begins with."""
    ends: dict[int, int] = {}
    last = set()
    for index, request in enumerate(requests):
        # The last token of a prompt is always computed, so its block cannot hit.
        chain = chain_hashes(request.prompt_ids[: (request.input_length - 1) // block])
        for hash in chain:
            last.discard(ends.get(hash, -1))
        last.add(index)
        if chain:
            ends[chain[-1]] = index
    return last
