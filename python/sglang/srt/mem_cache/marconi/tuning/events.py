"""What the tuner is told of the requests: lengths and block hashes, never tokens."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache


@dataclass(frozen=True, slots=True)
class Began:
    """A request was admitted; ``hashes`` are those of its prompt's whole blocks.

    Attributes:
        arrived_ms: when the server received it, since 1970; 0 where that is not known.
        waited_ms: from then until its first prefill chunk was computed.
    """

    run_id: int
    prompt_tokens: int
    hashes: array[int]
    arrived_ms: int = 0
    waited_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """A request left: finished, with the blocks filled beyond its prompt's, or (``None``) not.

    Attributes:
        hint: what was said of what follows.
    """

    run_id: int
    generated: array[int] | None
    output_tokens: int = 0
    hint: Hint | None = None


@dataclass(frozen=True, slots=True)
class Flushed:
    """The cache was emptied."""


Event = Began | Ended | Flushed


def serve(cache: ShadowCache, event: Event) -> int:
    """Let a shadow live through one event.

    Returns:
        Blocks that hit.
    """
    if isinstance(event, Began):
        return cache.begin(event.run_id, event.hashes, event.prompt_tokens)
    if isinstance(event, Ended):
        cache.end(event.run_id, event.generated, event.hint)
    else:
        cache.flush()
    return 0
