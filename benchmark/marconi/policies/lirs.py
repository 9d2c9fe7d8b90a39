"""LIRS: keeps what was used at short intervals; all else passes through a queue of one per cent.

Jiang and Zhang, "LIRS: An Efficient Low Inter-reference Recency Set Replacement Policy to Improve
Buffer Cache Performance", SIGMETRICS 2002.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

from policies.listed import EvictedIds, ListPolicy, Objects, list_recipe
from policies.registry import PolicyArguments, Recipe, policy_family

#: Share of the cached prefixes that may be on trial; at least one.
TRIAL_SHARE = 0.01
#: Evicted prefixes that the stack remembers, to one cached.
EVICTED_A_PREFIX = 2.0


class LirsPolicy(ListPolicy):
    """See ``policies.listed`` for what stands for an object and for the capacity.

    The stack orders prefixes by last use, down to the least recent one that is kept (the paper's
    LIR); evicted ones stay in it as ghosts, of which the oldest are forgotten at two to one cached
    prefix. A prefix on trial (HIR) that is used, or comes back, while it is in the stack is kept,
    and the least recent one kept goes on trial. A victim is the oldest on trial, else the least
    recent one kept.

    New prefixes are kept until the first one leaves, and on trial from then on. The paper refills
    what is kept to 99 % at any time; but to make room for one long prompt many prefixes go, and
    newcomers would take the places of all of them, which is LRU.
    """

    def __init__(self, objects: Objects = Objects.NODES, *, shared: bool = False) -> None:
        super().__init__(objects, shared=shared)
        self.kept, self.trial = self.queue(), self.queue()
        self._stack: OrderedDict[int, None] = OrderedDict()
        self._evicted = EvictedIds()
        self._full = False

    def enter(self, prefix: CachedPrefix, *, returned: bool) -> None:
        self._to_top(prefix.id)
        if returned or not self._full:
            self._keep(prefix)
        else:
            self.trial.append(prefix)

    def use(self, prefix: CachedPrefix) -> None:
        recent = prefix.id in self._stack
        self._to_top(prefix.id)
        if prefix.id in self.kept:
            self.kept.append(prefix)
            self._prune()
        elif recent:
            self._keep(prefix)
        else:
            self.trial.append(prefix)

    def leave(self, id: int) -> None:
        self._full = True
        self.trial.discard(id)
        self.kept.discard(id)
        if id in self._stack:
            self._evicted.add(id)
        for ghost in self._evicted.trim(EVICTED_A_PREFIX * len(self.members)):
            del self._stack[ghost]
        self._prune()

    def missed(self, id: int) -> bool:
        known = id in self._evicted
        if known:
            self._evicted.discard(id)
            del self._stack[id]
            self._prune()
        return known

    def take_over(self, old: int, prefix: CachedPrefix) -> None:
        queue = self.kept if old in self.kept else self.trial
        queue.discard(old)
        queue.append(prefix)
        if old in self._stack:
            del self._stack[old]
            self._to_top(prefix.id)
            self._prune()

    def choose(self, want: Pool | None, excluding: Container[int]) -> int | None:
        trial = self.trial.oldest(want, excluding)
        return self.kept.oldest(want, excluding) if trial is None else trial

    def _most_kept(self) -> float:
        return len(self.members) - max(TRIAL_SHARE * len(self.members), 1)

    def _keep(self, prefix: CachedPrefix) -> None:
        self.trial.discard(prefix.id)
        self.kept.append(prefix)
        while len(self.kept) > max(self._most_kept(), 1):
            least = self.kept.first()
            self.kept.discard(least)
            self.trial.append(self.members[least])
            del self._stack[least]
        self._prune()

    def _to_top(self, id: int) -> None:
        self._stack[id] = None
        self._stack.move_to_end(id)

    def _prune(self) -> None:
        """Take from the bottom of the stack what is not kept."""
        while self._stack:
            bottom = next(iter(self._stack))
            if bottom in self.kept:
                return
            del self._stack[bottom]
            self._evicted.discard(bottom)


@policy_family("lirs[:OBJECT]", "LIRS; an OBJECT is a node (default), a line or a tail")
def lirs(arguments: PolicyArguments) -> Recipe:
    return list_recipe(
        arguments, lambda context, objects: LirsPolicy(objects, shared=context.elastic)
    )
