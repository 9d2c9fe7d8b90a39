"""Orders by a key over states and leaves of KV at once, for memory that both share."""

from __future__ import annotations

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

from policies.keyed import Key, KeyedPolicy


class SharedOrderPolicy(KeyedPolicy):
    """LRU over all that may go, a state or a leaf; on demand superseded states first.

    Args:
        superseded_first: states with one child, and KV from which nothing resumes, go first.
    """

    shared = True

    def __init__(self, *, superseded_first: bool = False) -> None:
        super().__init__(frozenset({Pool.STATE}))
        self._superseded_first = superseded_first

    def on_look(self, prefix: CachedPrefix, now: int) -> None:
        """SGLang's LRU is touched by looks too."""
        prefix.last_access = now
        self.on_hit(prefix, now)

    def key(self, prefix: CachedPrefix, pool: Pool) -> Key:
        stays = self._superseded_first and prefix.has_state and prefix.children != 1
        return stays, prefix.last_access

    def may_leave(self, prefix: CachedPrefix, pool: Pool) -> bool:
        return any(prefix.may_leave(either) for either in Pool)
