"""Where tokens are lost: blocks seen before that a request must prefill again, and why.

The same bookkeeping serves every policy and every tree core. It remembers the whole trace as one
hash a block, so its answers do not fade as the server's bounded memory of ghosts does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


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


def chain_hashes(ids: Sequence[int]) -> list[int]:
    """One hash for each block's whole prefix: equal where and only where the prefixes are."""
    return list(itertools.accumulate(ids, lambda chain, id: hash((chain, id)), initial=0))[1:]


class LossLedger:
    """Remembers every prefix that was computed and every depth at which a state was admitted."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._admitted: set[int] = set()

    def look_up(self, chain: Sequence[int], hit: int, kv_alive: int) -> Loss:
        """Explain one lookup; depths in blocks.

        Args:
            chain: hashes of the prompt's blocks that could hit.
            hit: depth at which the request resumes.
            kv_alive: depth to which the prompt's KV lives, with or without a state.
        """
        seen = len(chain)
        while seen > hit and chain[seen - 1] not in self._seen:
            seen -= 1
        admitted = seen
        while admitted > hit and chain[admitted - 1] not in self._admitted:
            admitted -= 1
        if admitted <= kv_alive:
            return Loss(state_evicted=admitted - hit, never_admitted=seen - admitted)
        return Loss(kv_evicted=admitted - hit, never_admitted=seen - admitted)

    def computed(self, chain: Sequence[int]) -> None:
        """All blocks of ``chain`` were computed."""
        self._seen.update(chain)

    def admitted(self, prefix: int) -> None:
        """A state was offered to the cache at the end of this prefix."""
        self._admitted.add(prefix)
