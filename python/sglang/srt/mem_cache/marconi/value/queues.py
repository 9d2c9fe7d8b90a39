"""The candidates of one pool, in queues of what is alike but for its last use."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection
from dataclasses import dataclass, field
from math import frexp, ldexp

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix
from sglang.srt.mem_cache.marconi.value.odds import PrefixClass, ReuseOdds, first_age, level_of

#: Class, and binary order of magnitude of FLOPs per byte (``None``: saves nothing).
QueueKey = tuple[PrefixClass, int | None]
#: Stamp, order and id.
Entry = tuple[int, int, int]


@dataclass(slots=True, eq=False)
class Queue:
    """Candidates of one class that cost about the same, by last use.

    Attributes:
        entries: ascending.
        levels: bit ``i`` is set where the queue is ranked at level ``i`` of age.
    """

    key: QueueKey
    entries: list[Entry] = field(default_factory=list)
    levels: int = 0


@dataclass(slots=True, eq=False)
class Candidate:
    """A prefix that the pool may evict, as it stands in a queue.

    Attributes:
        stamp: tick of its last use.
        efficiency: FLOPs lost per byte freed.
    """

    prefix: CachedPrefix
    queue: Queue
    stamp: int
    efficiency: float


class Queues:
    """Queues by class and cost; their number is bounded, whatever is cached.

    ``put`` and ``discard`` are a binary search and a move of the entries behind, 8 bytes each: what
    was used just now, as most that change were, has none behind.

    A decision takes the least recently used of each queue at each level of age, in the order of the
    least that it can be worth there, and ends where that exceeds the lowest value seen: these are
    few. The order is made anew by ``rank`` and added to meanwhile; what has grown to another level
    since then is still met where it was ranked.
    """

    def __init__(self, odds: ReuseOdds) -> None:
        self._odds = odds
        self._members: dict[int, Candidate] = {}
        self._queues: dict[QueueKey, Queue] = {}
        self._ranking: list[tuple[float, int, Queue]] = []

    def __len__(self) -> int:
        return len(self._members)

    def get(self, id: int) -> Candidate | None:
        return self._members.get(id)

    def put(
        self, prefix: CachedPrefix, kind: PrefixClass, stamp: int, efficiency: float, now: int
    ) -> None:
        """Enter a prefix, or move it to where it belongs now."""
        key = (kind, frexp(efficiency)[1] if efficiency > 0 else None)
        known = self._members.get(prefix.id)
        if known is not None:
            if known.queue.key == key and known.stamp == stamp:
                known.efficiency = efficiency
                return
            self._leave(known)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = Queue(key)
        self._members[prefix.id] = Candidate(prefix, queue, stamp, efficiency)
        entry = (stamp, prefix.order, prefix.id)
        entries = queue.entries
        if entries and entry < entries[-1]:
            insort(entries, entry)
        else:
            entries.append(entry)
        level = level_of(now - stamp)
        if not queue.levels >> level & 1:
            queue.levels |= 1 << level
            insort(self._ranking, self._ranked(queue, level), key=_least)

    def discard(self, id: int) -> None:
        known = self._members.pop(id, None)
        if known is not None:
            self._leave(known)

    def rank(self, now: int) -> None:
        """Take note of the ages at tick ``now``, and of the odds."""
        self._queues = {key: queue for key, queue in self._queues.items() if queue.entries}
        self._ranking = []
        for queue in self._queues.values():
            queue.levels = _levels(queue.entries, now)
            for level in range(queue.levels.bit_length()):
                if queue.levels >> level & 1:
                    self._ranking.append(self._ranked(queue, level))
        self._ranking.sort(key=_least)

    def lowest(self, now: int, excluding: Collection[int] = ()) -> Candidate | None:
        """The candidate worth least among the least recently used of each queue and level.

        What it is worth at tick ``now`` is its rate of reuse times its efficiency; of equals the
        one that was used first goes, then the one of lower order.
        """
        best: Candidate | None = None
        lowest = (0.0, 0, 0)
        for least, level, queue in self._ranking:
            if best is not None and least > lowest[0]:
                break
            head = self._head(queue, level, now, excluding)
            if head is None:
                continue
            rate = self._odds.rate(queue.key[0], now - head.stamp) if head.efficiency else 0.0
            rank = (rate * head.efficiency, head.stamp, head.prefix.order)
            if best is None or rank < lowest:
                best, lowest = head, rank
        return best

    def _ranked(self, queue: Queue, level: int) -> tuple[float, int, Queue]:
        kind, magnitude = queue.key
        if magnitude is None:
            return (0.0, level, queue)
        return (self._odds.least_rate(kind, level) * ldexp(0.5, magnitude), level, queue)

    def _leave(self, candidate: Candidate) -> None:
        entries = candidate.queue.entries
        entry = (candidate.stamp, candidate.prefix.order, candidate.prefix.id)
        del entries[bisect_left(entries, entry)]

    def _head(
        self, queue: Queue, level: int, now: int, excluding: Collection[int]
    ) -> Candidate | None:
        """The first of a queue that is below the next level at which the queue is ranked."""
        entries = queue.entries
        older = queue.levels >> (level + 1)
        at = 0
        if older:
            above = level + (older & -older).bit_length()
            at = bisect_left(entries, (now - first_age(above) + 1,))
        last = now - first_age(level)
        while at < len(entries) and entries[at][0] <= last:
            id = entries[at][2]
            if id not in excluding:
                return self._members[id]
            at += 1
        return None

    def _check(self) -> None:
        for key, queue in self._queues.items():
            assert queue.key == key
            assert queue.entries == sorted(set(queue.entries)), "a queue is out of order"
            ranked = sum(1 << level for _, level, other in self._ranking if other is queue)
            assert ranked == queue.levels, "a queue is not ranked where it says"
        for id, member in self._members.items():
            entry = (member.stamp, member.prefix.order, id)
            assert self._queues[member.queue.key] is member.queue
            assert entry in member.queue.entries, f"prefix {id} stands in no queue"
        entries = sum(len(queue.entries) for queue in self._queues.values())
        assert entries == len(self._members), "a queue has lost count of its members"


def _least(ranked: tuple[float, int, Queue]) -> float:
    return ranked[0]


def _levels(entries: list[Entry], now: int) -> int:
    """The levels of age at which a queue has members, as bits; O(levels log n)."""
    levels = at = 0
    while at < len(entries):
        level = level_of(now - entries[at][0])
        levels |= 1 << level
        if not level:
            break
        at = bisect_left(entries, (now - first_age(level) + 1,), at)
    return levels
