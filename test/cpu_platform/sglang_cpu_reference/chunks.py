"""Cuts packed sequences into chunks of equal length that can be computed side by side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class ChunkPlan:
    """Where the tokens of N packed sequences lie among NC chunks of ``size`` tokens.

    Each sequence starts a chunk of its own and its last chunk is padded, so that chunk ``c`` of
    a sequence always begins ``c * size`` tokens after the sequence does. That is the grid on
    which SGLang snapshots recurrent states.
    """

    offsets: tuple[int, ...]
    size: int

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence, N numbers."""
        return tuple(b - a for a, b in zip(self.offsets, self.offsets[1:], strict=False))

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Chunks of each sequence, N numbers; none for an empty sequence."""
        return tuple(-(-length // self.size) for length in self.lengths)

    @cached_property
    def first(self) -> tuple[int, ...]:
        """First chunk of each sequence, and the number of chunks at the end: N + 1 numbers."""
        starts = [0]
        for count in self.counts:
            starts.append(starts[-1] + count)
        return tuple(starts)

    @property
    def total(self) -> int:
        """Chunks of all sequences."""
        return self.first[-1]

    @cached_property
    def longest_first(self) -> tuple[int, ...]:
        """The non-empty sequences by falling number of chunks.

        In this order the sequences that still have a chunk at step ``s`` are always the first
        ones, so a scan over steps shrinks its batch by slicing.
        """
        rows = [row for row, count in enumerate(self.counts) if count]
        return tuple(sorted(rows, key=lambda row: -self.counts[row]))

    def steps(self) -> list[tuple[int, torch.Tensor | slice]]:
        """For each step of a scan: how many sequences take part, and their chunks in order."""
        order = self.longest_first
        plan: list[tuple[int, torch.Tensor | slice]] = []
        for step in range(self.counts[order[0]] if order else 0):
            chunks = [self.first[row] + step for row in order if self.counts[row] > step]
            # A slice reads a view where an index would copy: the common case of one sequence.
            alone = len(chunks) == 1
            where = slice(chunks[0], chunks[0] + 1) if alone else torch.tensor(chunks)
            plan.append((len(chunks), where))
        return plan

    def split(self, packed: torch.Tensor) -> torch.Tensor:
        """[T, ...] to fp32 [NC, size, ...]; the padding is zero."""
        shape = packed.shape[1:]
        if self.offsets[0] == 0 and len(self.lengths) == 1 and self.lengths[0] % self.size == 0:
            tokens = packed[: self.lengths[0]].float()
            return tokens.reshape(self.total, self.size, *shape)
        padded = torch.zeros((self.total * self.size, *shape), dtype=torch.float32)
        for row, length in enumerate(self.lengths):
            begin, source = self.first[row] * self.size, self.offsets[row]
            padded[begin : begin + length] = packed[source : source + length]
        return padded.view(self.total, self.size, *shape)

    def join_into(self, chunked: torch.Tensor, packed: torch.Tensor) -> None:
        """[NC, size, ...] into [T, ...], in the dtype of the target; padding is dropped."""
        flat = chunked.reshape(self.total * self.size, *chunked.shape[2:])
        for row, length in enumerate(self.lengths):
            begin, target = self.first[row] * self.size, self.offsets[row]
            packed[target : target + length] = flat[begin : begin + length]


def plan_chunks(offsets: torch.Tensor, size: int) -> ChunkPlan:
    """Plan for cumulative sequence lengths [N + 1]."""
    return ChunkPlan(tuple(offsets.tolist()), size)
