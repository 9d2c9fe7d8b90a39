"""Chained hashes of token blocks: one multiplication a token, no token kept."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from sglang.srt.mem_cache.marconi.tree import Namespace

Words = npt.NDArray[np.uint64]


def _odd_words(seed: bytes, count: int) -> Words:
    digests = (blake2b(seed + i.to_bytes(8), digest_size=8).digest() for i in range(count))
    return np.frombuffer(b"".join(digests), dtype=np.uint64) | np.uint64(1)


class BlockHasher:
    """Hashes sequences block by block.

    The hash of a prefix is a sum over its blocks of a mixed inner product with random odd 64-bit
    weights, so a block, its place and all before it decide it; two prefixes that differ agree with
    a probability of about 2**-63. Not for adversaries: a collision misleads a prediction, no more.

    Args:
        block_tokens: tokens a block.
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._weights = _odd_words(b"token", block_tokens)
        self._place = int(_odd_words(b"place", 1)[0])

    def start(self, namespace: Namespace) -> int:
        """The hash of the empty sequence in a namespace, the same in every process."""
        return int.from_bytes(blake2b(repr(namespace).encode(), digest_size=8).digest())

    def extend(self, before: int, blocks: int, tokens: Sequence[int]) -> Words:
        """Hashes of the prefixes that ``tokens`` complete.

        Args:
            before: hash of the ``blocks`` blocks that came before.
            tokens: those that follow; what fills no block is left out. ``array("q")`` is read in
                place.
        """
        whole = len(tokens) // self.block_tokens
        if not whole:
            return np.empty(0, dtype=np.uint64)
        numbers = np.asarray(tokens, dtype=np.int64)[: whole * self.block_tokens].view(np.uint64)
        sums = numbers.reshape(whole, self.block_tokens) @ self._weights
        places = np.arange(blocks, blocks + whole, dtype=np.uint64) * np.uint64(self._place)
        hashes = np.cumsum(_mix(sums ^ places), dtype=np.uint64)
        hashes += np.uint64(before)
        return hashes


def _mix(words: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    words = words ^ (words >> np.uint64(30))
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
