"""2Q: a queue of newcomers, ghosts of those evicted from it, and LRU over what came back.

Johnson and Shasha, "2Q: A Low Overhead High Performance Buffer Management Replacement Algorithm",
VLDB 1994.
"""

from __future__ import annotations

from collections.abc import Container

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

from policies.listed import EvictedIds, ListPolicy, Objects, list_recipe
from policies.registry import PolicyArguments, Recipe, policy_family

#: Shares of the cached prefixes: newcomers before they give victims; their ghosts at most.
NEW_SHARE, EVICTED_SHARE = 0.25, 0.5


class TwoQPolicy(ListPolicy):
    """See ``policies.listed`` for what stands for an object and for the capacity.

    A use does not move a newcomer; what comes back in the place of a newcomer's ghost enters the
    other list, which is LRU. Victims are the oldest newcomers while they are more than a quarter.
    """

    def __init__(self, objects: Objects = Objects.NODES, *, shared: bool = False) -> None:
        super().__init__(objects, shared=shared)
        self.new, self.proven = self.queue(), self.queue()
        self._evicted = EvictedIds()

    def enter(self, prefix: CachedPrefix, *, returned: bool) -> None:
        (self.proven if returned else self.new).append(prefix)

    def use(self, prefix: CachedPrefix) -> None:
        if prefix.id in self.proven:
            self.proven.append(prefix)

    def leave(self, id: int) -> None:
        if id in self.new:
            self._evicted.add(id)
            self._evicted.trim(EVICTED_SHARE * len(self.members))
        self.new.discard(id)
        self.proven.discard(id)

    def missed(self, id: int) -> bool:
        known = id in self._evicted
        self._evicted.discard(id)
        return known

    def take_over(self, old: int, prefix: CachedPrefix) -> None:
        (self.new if old in self.new else self.proven).replace(old, prefix)

    def choose(self, want: Pool | None, excluding: Container[int]) -> int | None:
        new = self.new.oldest(want, excluding)
        proven = self.proven.oldest(want, excluding)
        if new is not None and (proven is None or len(self.new) > NEW_SHARE * len(self.members)):
            return new
        return proven


@policy_family("2q[:OBJECT]", "2Q; an OBJECT is a node (default), a line or a tail")
def two_q(arguments: PolicyArguments) -> Recipe:
    return list_recipe(
        arguments, lambda context, objects: TwoQPolicy(objects, shared=context.elastic)
    )
