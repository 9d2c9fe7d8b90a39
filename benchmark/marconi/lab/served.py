"""The units in which every simulated cache counts: blocks of a trace, by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from sglang.srt.marconi_utils import ModelCost
from traces import Request


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


def named_blocks(request: Request, block: int, fresh: Iterator[int]) -> tuple[list[int], list[int]]:
    """Ids of a prompt's whole blocks and of those filled beyond; ``fresh`` where none are known."""
    # The last token of a reply is never fed back, so it has no KV.
    count = (request.input_length + max(request.output_length, 1) - 1) // block
    prompt = list(request.prompt_ids[: request.input_length // block])
    output = list(request.output_ids[: count - len(prompt)])
    output += itertools.islice(fresh, count - len(prompt) - len(output))
    return prompt, output
