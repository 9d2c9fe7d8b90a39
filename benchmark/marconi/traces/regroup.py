"""Turns block ids into ids of larger blocks."""

from __future__ import annotations

from dataclasses import replace

from traces.hashing import name_id
from traces.request import Request


def regroup(request: Request, block: int, larger: int) -> Request:
    """The request with ids of blocks of ``larger`` tokens instead of ``block``.

    Equality of prefixes is kept to whole larger blocks.

    Raises:
        ValueError: ``larger`` is no multiple of ``block``.
    """
    if larger % block:
        raise ValueError(f"blocks of {block} tokens do not add up to blocks of {larger}")
    count = larger // block
    if count == 1:
        return request
    ids = [*request.prompt_ids, *request.output_ids]
    groups = [
        name_id("group", *ids[end - count : end]) for end in range(count, len(ids) + 1, count)
    ]
    full = request.input_length // larger
    return replace(request, prompt_ids=tuple(groups[:full]), output_ids=tuple(groups[full:]))
