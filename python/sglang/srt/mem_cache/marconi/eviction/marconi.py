"""Policy 2, the paper's (section 4.2): evict the lowest recency + alpha * FLOP efficiency."""

from __future__ import annotations

from collections.abc import Container
from functools import partial

from sglang.srt.mem_cache.marconi.eviction.candidates import Candidates
from sglang.srt.mem_cache.marconi.eviction.savings import Savings, flop_efficiency
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

#: Hits that may have yet to be entered, so that a decision after a long time takes none.
MOST_HITS = 32


class MarconiPolicy:
    """The lowest score among the candidates of a pool goes first.

    Args:
        eff_weight: alpha, dimensionless, >= 0; may be set anew at any time.
        pools: whose victims it chooses.
        shared: both pools are one memory, as in the paper: whichever is short, the lowest score
            among states and leaves of KV goes.
    """

    def __init__(
        self,
        savings: Savings,
        eff_weight: float,
        pools: frozenset[Pool] = frozenset(Pool),
        *,
        shared: bool = False,
    ) -> None:
        self.pools = pools
        self.shared = shared
        self.eff_weight = eff_weight
        self._candidates = Candidates(
            [None] if shared else [pool for pool in Pool if pool in pools],
            partial(flop_efficiency, savings),
        )
        self._hit: dict[int, CachedPrefix] = {}

    def on_insert(self, prefix: CachedPrefix, now: int) -> None:
        self.on_change(prefix)

    def on_hit(self, prefix: CachedPrefix, now: int) -> None:
        # A hit mostly comes before a change (the lock), and one entry does for both.
        self._hit[prefix.id] = prefix
        if len(self._hit) > MOST_HITS:
            self.on_change(self._hit[next(iter(self._hit))])

    def on_change(self, prefix: CachedPrefix) -> None:
        self._hit.pop(prefix.id, None)
        self._candidates.put(prefix)

    def on_remove(self, prefix: CachedPrefix) -> None:
        self._hit.pop(prefix.id, None)
        self._candidates.discard(prefix)

    def victim(self, pool: Pool, now: int, excluding: Container[int] = ()) -> CachedPrefix | None:
        if pool not in self.pools:
            return None
        self._enter_hits()
        return self._candidates.lowest(
            None if self.shared else pool, now, self.eff_weight, excluding
        )

    def candidates_and_steps(self, pool: Pool) -> tuple[int, int]:
        """How many prefixes a decision chooses from, and how many of them it looks at."""
        self._enter_hits()
        return self._candidates.count(None if self.shared else pool)

    def _enter_hits(self) -> None:
        while self._hit:
            self.on_change(next(iter(self._hit.values())))

    def _check(self) -> None:
        self._enter_hits()
        self._candidates._check()
