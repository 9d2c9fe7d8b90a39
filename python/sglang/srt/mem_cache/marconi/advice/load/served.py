"""What a request found, and the lengths in which every simulated server counts."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Tokens: ``--chunked-prefill-size`` and ``--mamba-track-interval`` of the simulated server.
CHUNK_TOKENS, TRACK_TOKENS = 8192, 256
#: Tokens between the depths at which a prefill can leave a state: the kernels' chunk.
GRID_TOKENS = 64


class OutOfMemory(Exception):
    """Nothing evictable is left: a scheduler would let the request wait."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Blocks of one prompt that were seen before and are computed again, by what was missing.

    Attributes:
        state_evicted: up to the deepest state ever admitted on the path, whose KV lives: only
            the state is gone.
        kv_evicted: up to that state, where its KV is gone too.
        never_admitted: beyond it: seen, but no state was ever admitted so deep.
    """

    state_evicted: int = 0
    kv_evicted: int = 0
    never_admitted: int = 0


@dataclass
class Served:
    """What one request found; in tokens.

    Attributes:
        served: ``False`` where the request did not fit even alone.
        loaded_tokens: of ``hit_tokens``, those that the host had and the device not.
        copy_seconds: that it, or who was served beside it, waited for copies to and from the host.
        lost: blocks seen before that had to be computed again, where somebody counts them.
        index: the request's place in the trace, counted from 0.
        ttft_seconds: modelled time to the first token, the wait included; ``None`` where time is
            not modelled, as the next three.
        wait_seconds: from when it came until its prefill began.
        came_seconds, ended_seconds: by the server's clock.
        session: whom it belongs to, where a trace says so.
    """

    input_tokens: int
    hit_tokens: int
    served: bool = True
    lost: Loss = field(default_factory=Loss)
    ttft_seconds: float | None = None
    index: int = 0
    wait_seconds: float | None = None
    came_seconds: float | None = None
    ended_seconds: float | None = None
    session: str | None = None
    loaded_tokens: int = 0
    copy_seconds: float = 0.0
