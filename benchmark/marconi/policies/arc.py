"""ARC: one list of what was used once, one of what was used again; ghosts set the balance.

Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003.
"""

from __future__ import annotations

from collections.abc import Container

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

from policies.listed import EvictedIds, ListPolicy, Objects, list_recipe
from policies.registry import PolicyArguments, Recipe, policy_family


class ArcPolicy(ListPolicy):
    """See ``policies.listed`` for what stands for an object and for the capacity.

    A victim is the least recent of the list of new prefixes while that is longer than the target,
    else the least recent of the other, or of whichever has one to give. A hit on a ghost moves the
    target towards the list that it was evicted from, by the quotient of the lists of ghosts and at
    least one; what comes back in its place counts as used again.
    """

    def __init__(self, objects: Objects = Objects.NODES, *, shared: bool = False) -> None:
        super().__init__(objects, shared=shared)
        self.once, self.again = self.queue(), self.queue()
        self._ghosts_once, self._ghosts_again = EvictedIds(), EvictedIds()
        #: Length that the list of new prefixes should have.
        self.target = 0.0

    def enter(self, prefix: CachedPrefix, *, returned: bool) -> None:
        (self.again if returned else self.once).append(prefix)

    def use(self, prefix: CachedPrefix) -> None:
        self.once.discard(prefix.id)
        self.again.append(prefix)

    def leave(self, id: int) -> None:
        (self._ghosts_once if id in self.once else self._ghosts_again).add(id)
        self.once.discard(id)
        self.again.discard(id)
        self._ghosts_once.trim(len(self.again))
        self._ghosts_again.trim(len(self.members) - len(self._ghosts_once))

    def missed(self, id: int) -> bool:
        once, again = len(self._ghosts_once), len(self._ghosts_again)
        if id in self._ghosts_once:
            self.target = min(self.target + max(again / once, 1), len(self.members))
            self._ghosts_once.discard(id)
        elif id in self._ghosts_again:
            self.target = max(self.target - max(once / again, 1), 0)
            self._ghosts_again.discard(id)
        else:
            return False
        return True

    def take_over(self, old: int, prefix: CachedPrefix) -> None:
        (self.once if old in self.once else self.again).replace(old, prefix)

    def choose(self, want: Pool | None, excluding: Container[int]) -> int | None:
        once = self.once.oldest(want, excluding)
        again = self.again.oldest(want, excluding)
        if once is not None and (again is None or len(self.once) > self.target):
            return once
        return again


@policy_family("arc[:OBJECT]", "ARC; an OBJECT is a node (default), a line or a tail")
def arc(arguments: PolicyArguments) -> Recipe:
    return list_recipe(
        arguments, lambda context, objects: ArcPolicy(objects, shared=context.elastic)
    )
