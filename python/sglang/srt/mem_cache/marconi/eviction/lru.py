"""Policy 1: stock LRU, which leaves every choice to SGLang."""

from __future__ import annotations

from collections.abc import Container

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool


class LruPolicy:
    """It orders no pool, so SGLang's own walk decides, victim for victim."""

    pools: frozenset[Pool] = frozenset()

    def on_insert(self, prefix: CachedPrefix, now: int) -> None: ...

    def on_hit(self, prefix: CachedPrefix, now: int) -> None: ...

    def on_change(self, prefix: CachedPrefix) -> None: ...

    def on_remove(self, prefix: CachedPrefix) -> None: ...

    def victim(self, pool: Pool, now: int, excluding: Container[int] = ()) -> CachedPrefix | None:
        return None
