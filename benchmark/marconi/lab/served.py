"""What a request found, and the units in which every simulated cache counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from sglang.srt.marconi_utils import ModelCost
from traces import Request

from lab.losses import Loss

#: Tokens: ``--chunked-prefill-size`` and ``--mamba-track-interval`` of the simulated server.
CHUNK_TOKENS, TRACK_TOKENS = 8192, 256
#: Tokens between the depths at which a prefill can leave a state: the kernels' chunk.
GRID_TOKENS = 64


class OutOfMemory(Exception):
    """Nothing evictable is left: a scheduler would let the request wait."""


@dataclass(frozen=True)
class BlockCost:
    """A model's cost where the unit of length is a block of ``block_tokens`` tokens."""

    model: ModelCost
    block_tokens: int

    @property
    def kv_bytes_per_token(self) -> float:
        return self.model.kv_bytes_per_token * self.block_tokens

    @property
    def state_bytes(self) -> float:
        return self.model.state_bytes

    def flops(self, start: int, end: int) -> float:
        return self.model.flops(start * self.block_tokens, end * self.block_tokens)


@dataclass
class Served:
    """What one request found; in tokens.

    Attributes:
        served: ``False`` where the request did not fit even alone.
        lost: blocks seen before that had to be computed again.
        index: the request's place in the trace, counted from 0.
        ttft_seconds: modelled time to the first token, the wait included; ``None`` where time is
            not modelled, as the next four.
        wait_seconds: from when it came until its prefill began.
        came_seconds, ended_seconds: by the server's clock.
        session: whom it belongs to.
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


def named_blocks(request: Request, block: int, fresh: Iterator[int]) -> tuple[list[int], list[int]]:
    """Ids of a prompt's whole blocks and of those filled beyond; ``fresh`` where none are known."""
    # The last token of a reply is never fed back, so it has no KV.
    count = (request.input_length + max(request.output_length, 1) - 1) // block
    prompt = list(request.prompt_ids[: request.input_length // block])
    output = list(request.output_ids[: count - len(prompt)])
    output += itertools.islice(fresh, count - len(prompt) - len(output))
    return prompt, output
