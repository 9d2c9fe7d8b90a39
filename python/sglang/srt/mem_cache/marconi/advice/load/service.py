"""How long a request keeps the simulated machine busy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServiceTimes:
    """How long a request keeps the machine busy.

    Attributes:
        prefill_flops_per_second: sustained over a prefill chunk.
        attention_time: seconds that a FLOP of attention takes, to one of other layers.
        batch_seconds: of each prefill batch, whatever it holds.
        decode_seconds_per_token: of each request, whatever else runs.
        speed: the trace's clock runs this many times faster.
    """

    prefill_flops_per_second: float = 4e14
    decode_seconds_per_token: float = 0.02
    speed: float = 1.0
    batch_seconds: float = 0.0
    attention_time: float = 1.0
