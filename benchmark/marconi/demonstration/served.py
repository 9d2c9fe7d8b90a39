"""What a client saw of one request, and of one run of a workload."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Served:
    """One answered request. Lengths in tokens, times in seconds.

    ``cached_tokens`` of the prompt needed no prefill; ``ttft`` is the time to the first token.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """One run of a workload on one server.

    ``seconds`` in which the server had work, by the wall; ``cpu_seconds`` of all its processes,
    0 where nobody looked.
    """

    served: list[Served]
    seconds: float
    cpu_seconds: float = 0.0
