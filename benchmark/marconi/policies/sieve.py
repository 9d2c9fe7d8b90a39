"""SIEVE: one queue, a mark for what was used, and a hand that passes over marks once.

Zhang et al., "SIEVE is Simpler than LRU: an Efficient Turn-Key Eviction Algorithm for Web Caches",
NSDI 2024.
"""

from __future__ import annotations

from collections.abc import Container

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

from policies.listed import ListPolicy, Objects, list_recipe
from policies.registry import PolicyArguments, Recipe, policy_family


class SievePolicy(ListPolicy):
    """See ``policies.listed`` for what stands for an object; it has no ghosts.

    The hand goes from the oldest to the newest and begins anew. It takes the marks of what it
    passes that the pool may evict, and stops at the first without one.
    """

    def __init__(self, objects: Objects = Objects.NODES, *, shared: bool = False) -> None:
        super().__init__(objects, shared=shared)
        self.line = self.queue()
        self._marked: set[int] = set()
        self._hand = -1

    def enter(self, prefix: CachedPrefix, *, returned: bool) -> None:
        self.line.append(prefix)

    def use(self, prefix: CachedPrefix) -> None:
        self._marked.add(prefix.id)

    def leave(self, id: int) -> None:
        self.line.discard(id)
        self._marked.discard(id)

    def take_over(self, old: int, prefix: CachedPrefix) -> None:
        self.line.replace(old, prefix)
        if old in self._marked:
            self._marked.remove(old)
            self._marked.add(prefix.id)

    def choose(self, want: Pool | None, excluding: Container[int]) -> int | None:
        while True:
            found = self.line.oldest(want, excluding, after=self._hand)
            if found is None:
                self._hand = -1
                found = self.line.oldest(want, excluding)
            if found is None or found not in self._marked:
                return found
            self._marked.remove(found)
            self._hand = self.line.place(found)


@policy_family("sieve[:OBJECT]", "SIEVE; an OBJECT is a node (default), a line or a tail")
def sieve(arguments: PolicyArguments) -> Recipe:
    return list_recipe(
        arguments, lambda context, objects: SievePolicy(objects, shared=context.elastic)
    )
