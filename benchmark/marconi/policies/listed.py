"""Prefixes as the objects of published list policies: what all of them need, and their queues.

Such a policy is written for objects that a request finds or does not find, and that can always go.
Here an object is a prefix that holds a state, whatever pools it takes its bytes from:

- a request uses the state that it resumes at, and no other on its path;
- a ghost is hit by the request that would have resumed at an evicted state (``on_return``), and
  what comes back in its place is the first state that is cached later, as deep or deeper; a state
  that is cached again where one was evicted hits that one's ghost;
- one set of lists serves both pools and counts prefixes, not bytes; a prefix that the pool which is
  short cannot evict now (locked, or with a child, or of the other pool) is passed over;
- the capacity that sizes of lists refer to is the number of prefixes that are cached now;
- KV from which no state resumes goes first, the oldest of it.

A session never uses the same state twice: each turn leaves a deeper one. :class:`Objects` says what
becomes of the history then.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Container
from enum import Enum

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from sortedcontainers import SortedDict

from policies.registry import CacheArguments, PolicyArguments, PolicyContext, Recipe

#: Hits on ghosts that still wait for what comes back.
MOST_RETURNS = 8
#: Evicted prefixes whose depth is known; no list of ghosts is longer.
MOST_DEPTHS = 1 << 16


class Objects(Enum):
    """What an object is, as a user names it."""

    #: A node; the state that a turn leaves is a new one.
    NODES = "node"
    #: A session's line: the first state that is cached below another takes its place in the lists
    #: and its history, and the one above is entered anew.
    LINES = "line"
    #: The same, and states with one child, which a deeper one supersedes, go before all others, in
    #: the order in which they were superseded or last used.
    TAILS = "tail"


class IdQueue:
    """Prefixes in the order in which they were appended; knows the oldest that a pool may evict.

    All operations are O(log n).

    Args:
        wants: pools that a victim may be wanted for; ``None``: memory that both share.
    """

    def __init__(self, wants: tuple[Pool | None, ...]) -> None:
        self._place: dict[int, int] = {}
        self._all = SortedDict()
        self._loose = {want: SortedDict() for want in wants}
        self._next = 0

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, id: int) -> bool:
        return id in self._place

    def append(self, prefix: CachedPrefix) -> None:
        """Put a prefix behind all others, also one that is in the queue."""
        self.discard(prefix.id)
        self._put(prefix, self._next)
        self._next += 1

    def replace(self, old: int, prefix: CachedPrefix) -> None:
        """Put a new prefix into the place of an old one, which leaves."""
        place = self._place[old]
        self.discard(old)
        self._put(prefix, place)

    def note_who_may_evict(self, prefix: CachedPrefix) -> None:
        """Take note of who may evict a prefix now; nothing if it is not in the queue."""
        place = self._place.get(prefix.id)
        if place is None:
            return
        for want, loose in self._loose.items():
            if prefix.may_leave(want):
                loose[place] = prefix.id
            else:
                loose.pop(place, None)

    def discard(self, id: int) -> None:
        place = self._place.pop(id, None)
        if place is not None:
            del self._all[place]
            for loose in self._loose.values():
                loose.pop(place, None)

    def first(self) -> int:
        """The prefix appended first, whoever may evict it, of a queue that is not empty."""
        return int(self._all.peekitem(0)[1])

    def place(self, id: int) -> int:
        """A number that grows along the queue and stays with a prefix until it moves."""
        return self._place[id]

    def oldest(
        self, want: Pool | None, excluding: Container[int] = (), *, after: int = -1
    ) -> int | None:
        """The prefix appended first that ``want`` may evict.

        Args:
            after: look only behind this place.
        """
        loose = self._loose[want]
        for place in loose.irange(after + 1):
            if loose[place] not in excluding:
                return int(loose[place])
        return None

    def _put(self, prefix: CachedPrefix, place: int) -> None:
        self._place[prefix.id] = place
        self._all[place] = prefix.id
        self.note_who_may_evict(prefix)


class EvictedIds:
    """Evicted prefixes, the last ones to go."""

    def __init__(self) -> None:
        self._ids: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id: int) -> bool:
        return id in self._ids

    def add(self, id: int) -> None:
        self._ids.pop(id, None)
        self._ids[id] = None

    def discard(self, id: int) -> None:
        self._ids.pop(id, None)

    def trim(self, most: float) -> list[int]:
        """Forget the oldest until no more than ``most`` are left, and return them."""
        surplus = math.ceil(len(self._ids) - max(most, 0))
        oldest = list(itertools.islice(self._ids, max(surplus, 0)))
        for id in oldest:
            del self._ids[id]
        return oldest


class ListPolicy:
    """From the events of a tree to those of an object cache; a subclass keeps the lists.

    A subclass gives :meth:`enter`, :meth:`use`, :meth:`leave`, :meth:`choose`, and, where it has
    ghosts, :meth:`missed`; for any objects but nodes also :meth:`take_over`.

    Args:
        shared: states and KV take their bytes from one memory.
    """

    def __init__(self, objects: Objects = Objects.NODES, *, shared: bool = False) -> None:
        self.shared = shared
        self.pools = frozenset({Pool.STATE}) if shared else frozenset(Pool)
        self.members: dict[int, CachedPrefix] = {}
        self._objects = objects
        self._continued: set[int] = set()
        self._wants: tuple[Pool | None, ...] = (None,) if shared else tuple(Pool)
        self._queues: list[IdQueue] = []
        self._bare, self._superseded = self.queue(), self.queue()
        self._stateless: dict[int, CachedPrefix] = {}
        self._depths: dict[int, int] = {}
        self._returns: deque[tuple[int, int]] = deque(maxlen=MOST_RETURNS)

    # -- what a subclass keeps

    def queue(self) -> IdQueue:
        """A queue that is kept up to who may evict its members."""
        queue = IdQueue(self._wants)
        self._queues.append(queue)
        return queue

    def enter(self, prefix: CachedPrefix, *, returned: bool) -> None:
        """A prefix is cached.

        Args:
            returned: it comes in the place of a ghost that :meth:`missed` knew.
        """
        raise NotImplementedError

    def use(self, prefix: CachedPrefix) -> None:
        """A request resumed at it."""
        raise NotImplementedError

    def leave(self, id: int) -> None:
        """It is no longer cached."""
        raise NotImplementedError

    def missed(self, id: int) -> bool:
        """A request would have resumed at a prefix that left; whether it is remembered."""
        return False

    def take_over(self, old: int, prefix: CachedPrefix) -> None:
        """A new prefix takes the place and the history of an old one, which is entered anew."""
        raise NotImplementedError

    def choose(self, want: Pool | None, excluding: Container[int]) -> int | None:
        """Whom to evict among the members that ``want`` may evict."""
        raise NotImplementedError

    # -- what the tree tells

    def on_insert(self, prefix: CachedPrefix, now: int) -> None:
        self.on_change(prefix)

    def on_hit(self, prefix: CachedPrefix, now: int) -> None:
        if prefix.id not in self.members:
            return
        if not prefix.children:
            self._continued.discard(prefix.id)
        if prefix.id in self._superseded:
            self._superseded.append(prefix)
        self.use(prefix)

    def on_change(self, prefix: CachedPrefix) -> None:
        if prefix.has_state:
            self._drop_bare(prefix.id)
            if prefix.id not in self.members:
                self._enter(prefix)
            if self._objects is not Objects.TAILS or prefix.children != 1:
                self._superseded.discard(prefix.id)
            elif prefix.id not in self._superseded:
                self._superseded.append(prefix)
        else:
            self._leave(prefix.id)
            if prefix.id not in self._bare:
                self._stateless[prefix.id] = prefix
                self._bare.append(prefix)
        for queue in self._queues:
            queue.note_who_may_evict(prefix)

    def on_remove(self, prefix: CachedPrefix) -> None:
        self._drop_bare(prefix.id)
        self._leave(prefix.id)

    def on_return(self, id: int, now: int) -> None:
        depth = self._depths.pop(id, None)
        if depth is not None and self.missed(id):
            self._returns.append((now, depth))

    def on_forgotten(self, id: int) -> None:
        self._depths.pop(id, None)

    def victim(self, pool: Pool, now: int, excluding: Container[int] = ()) -> CachedPrefix | None:
        want = None if self.shared else pool
        if want not in self._wants:
            return None
        bare = self._bare.oldest(want, excluding)
        if bare is not None:
            return self._stateless[bare]
        chosen = self._superseded.oldest(want, excluding)
        if chosen is None:
            chosen = self.choose(want, excluding)
        return None if chosen is None else self.members[chosen]

    # -- internals

    def _enter(self, prefix: CachedPrefix) -> None:
        self.members[prefix.id] = prefix
        above = prefix.reuse_id
        again = self.missed(prefix.id)
        if self._takes_return(prefix) or again:
            self.enter(prefix, returned=True)
        elif self._continues(above):
            assert above is not None
            self.take_over(above, prefix)
            self.enter(self.members[above], returned=False)
        else:
            self.enter(prefix, returned=False)
        if above is not None:
            self._continued.add(above)

    def _continues(self, above: int | None) -> bool:
        return (
            self._objects is not Objects.NODES
            and above in self.members
            and above not in self._continued
        )

    def _takes_return(self, prefix: CachedPrefix) -> bool:
        """Whether it comes in the place of the ghost that the last request before it missed."""
        for tick, depth in reversed(self._returns):
            if tick < prefix.last_access:
                if prefix.depth < depth:
                    return False
                self._returns.remove((tick, depth))
                return True
        return False

    def _drop_bare(self, id: int) -> None:
        self._bare.discard(id)
        self._stateless.pop(id, None)

    def _leave(self, id: int) -> None:
        prefix = self.members.pop(id, None)
        if prefix is None:
            return
        self._depths[id] = prefix.depth
        if len(self._depths) > MOST_DEPTHS:
            del self._depths[next(iter(self._depths))]
        self._continued.discard(id)
        self._superseded.discard(id)
        self.leave(id)


def list_recipe(
    arguments: PolicyArguments, make: Callable[[PolicyContext, Objects], ListPolicy]
) -> Recipe:
    """For a policy written ``NAME[:OBJECT]``, with nodes for objects by default."""
    text = arguments.text()
    allowed = [one.value for one in Objects]
    if text is not None and text not in allowed:
        raise arguments.error(f"OBJECT one of {', '.join(allowed)}")
    objects = Objects.NODES if text is None else Objects(text)
    return lambda context: CacheArguments(make(context, objects))
