"""Seeded contents: tokens that are the same wherever they have the same name."""

from __future__ import annotations

import random

import numpy as np

from traces.hashing import name_id


class Content:
    """Token contents of one workload, packed; equal names, equal tokens."""

    def __init__(self, seed: int, vocab_size: int) -> None:
        self._seed = seed
        self._vocab_size = vocab_size

    def named(self, length: int, *name: object) -> bytes:
        """``length`` tokens that belong to a name."""
        return self._draw(np.random.default_rng(name_id(self._seed, *name)), length)

    def fresh(self, length: int, rng: random.Random) -> bytes:
        """``length`` tokens that no other draw of ``rng`` gives."""
        return self._draw(np.random.default_rng(rng.getrandbits(63)), length)

    def _draw(self, rng: np.random.Generator, length: int) -> bytes:
        return rng.integers(0, self._vocab_size, length, dtype="<u4").tobytes()
