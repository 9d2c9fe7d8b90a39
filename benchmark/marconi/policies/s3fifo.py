"""S3-FIFO: a short queue on probation, a main queue, and ghosts of what failed probation.

Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP 2023.
"""

from __future__ import annotations

from collections.abc import Container

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

from policies.listed import EvictedIds, ListPolicy, Objects, list_recipe
from policies.registry import PolicyArguments, Recipe, policy_family

#: Share of the cached prefixes that the short queue may hold before it gives victims.
SMALL_SHARE = 0.1
#: Uses that are counted at most; uses on probation that open the main queue.
MOST_USES, PROMOTING_USES = 3, 1


class S3FifoPolicy(ListPolicy):
    """New prefixes enter the short queue; see ``policies.listed`` for what stands for an object.

    A victim is the oldest of the short queue while that is longer than a tenth of all, else the
    oldest of the main one. What was used on probation moves on to the main queue instead, and what
    was used there since its last turn has another. EvictedIds are those of the short queue, nine
    tenths of all prefixes at most; what comes back in their place enters the main queue.

    The paper asks for two uses on probation. A state is used but once before the next turn's takes
    over, so here one is enough.
    """

    def __init__(self, objects: Objects = Objects.NODES, *, shared: bool = False) -> None:
        super().__init__(objects, shared=shared)
        self.small, self.main = self.queue(), self.queue()
        self._evicted = EvictedIds()
        self._uses: dict[int, int] = {}

    def enter(self, prefix: CachedPrefix, *, returned: bool) -> None:
        (self.main if returned else self.small).append(prefix)
        self._uses[prefix.id] = 0

    def use(self, prefix: CachedPrefix) -> None:
        self._uses[prefix.id] = min(self._uses[prefix.id] + 1, MOST_USES)

    def leave(self, id: int) -> None:
        if id in self.small:
            self._evicted.add(id)
            self._evicted.trim((1 - SMALL_SHARE) * len(self.members))
        self.small.discard(id)
        self.main.discard(id)
        del self._uses[id]

    def missed(self, id: int) -> bool:
        known = id in self._evicted
        self._evicted.discard(id)
        return known

    def take_over(self, old: int, prefix: CachedPrefix) -> None:
        (self.small if old in self.small else self.main).replace(old, prefix)
        self._uses[prefix.id] = self._uses.pop(old)

    def choose(self, want: Pool | None, excluding: Container[int]) -> int | None:
        while True:
            small = self.small.oldest(want, excluding)
            main = self.main.oldest(want, excluding)
            if small is not None and (
                main is None or len(self.small) > SMALL_SHARE * len(self.members)
            ):
                if self._uses[small] < PROMOTING_USES:
                    return small
                self.small.discard(small)
                self.main.append(self.members[small])
                self._uses[small] = 0
            elif main is None or not self._uses[main]:
                return main
            else:
                self.main.append(self.members[main])
                self._uses[main] -= 1


@policy_family("s3fifo[:OBJECT]", "S3-FIFO; an OBJECT is a node (default), a line or a tail")
def s3fifo(arguments: PolicyArguments) -> Recipe:
    return list_recipe(
        arguments, lambda context, objects: S3FifoPolicy(objects, shared=context.elastic)
    )
