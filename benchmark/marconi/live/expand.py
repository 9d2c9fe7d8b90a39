"""Turns a trace's block ids into token ids: equal ids give equal tokens, always."""

from __future__ import annotations

import random
from functools import lru_cache


@lru_cache(maxsize=1 << 14)
def _expanded(block_id: int, block: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(random.Random(block_id).choices(range(vocab_size), k=block))


def expand_block(block_id: int, block: int, vocab_size: int) -> list[int]:
    """The ``block`` token ids in ``range(vocab_size)`` for which ``block_id`` stands."""
    return list(_expanded(block_id, block, vocab_size))
