"""Where tokens are lost: blocks seen before that a request must prefill again, and why.

The same bookkeeping serves every policy and every tree core. It remembers the whole trace as one
hash a block, so its answers do not fade as the server's bounded memory of ghosts does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sglang.srt.mem_cache.marconi.advice.load.served import Loss


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

    def withdrawn(self, prefix: int) -> None:
        """Admission took the state at the end of this prefix back."""
        self._admitted.discard(prefix)
