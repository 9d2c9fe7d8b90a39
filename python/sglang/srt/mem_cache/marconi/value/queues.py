"""The candidates of one pool, in queues within which the least recently used is worth least."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import frexp, ldexp

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix
from sglang.srt.mem_cache.marconi.value.odds import PrefixClass, ReuseOdds

#: Class, level of age, binary order of magnitude of FLOPs per byte (``None``: saves nothing).
QueueKey = tuple[PrefixClass, int, int | None]
_Entry = tuple[int, int, int, int]


@dataclass(slots=True, eq=False)
class Queue:
    """A heap by last use, with entries left behind by those that are in it no more.

    Attributes:
        entries: stamp, order, id and version.
        members: how many entries stand for a member.
    """

    key: QueueKey
    entries: list[_Entry] = field(default_factory=list)
    members: int = 0


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
    version: int


class Queues:
    """Queues by class, age and cost; the number of queues is bounded, whatever is cached.

    ``put`` and ``discard`` are O(log n), amortised. A decision looks at the queues in the order of
    the least that a member can be worth, and ends at one whose least exceeds the value of a head
    already seen: as values within a queue differ little, these are few. The order changes only
    with the odds.
    """

    def __init__(self) -> None:
        self._members: dict[int, Candidate] = {}
        self._queues: dict[QueueKey, Queue] = {}
        self._ranking: list[tuple[float, Queue]] = []
        self._unranked: list[Queue] = []
        self._edition = -1
        self._version = 0

    def __len__(self) -> int:
        return len(self._members)

    def get(self, id: int) -> Candidate | None:
        return self._members.get(id)

    def put(
        self, prefix: CachedPrefix, kind: PrefixClass, level: int, stamp: int, efficiency: float
    ) -> None:
        """Enter a prefix, or move it to where it belongs now."""
        magnitude = frexp(efficiency)[1] if efficiency > 0 else None
        key = (kind, level, magnitude)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = Queue(key)
            self._unranked.append(queue)
        known = self._members.get(prefix.id)
        if known is not None:
            if known.queue is queue and known.stamp == stamp:
                known.efficiency = efficiency
                return
            self._leave(known)
        self._version += 1
        self._members[prefix.id] = Candidate(prefix, queue, stamp, efficiency, self._version)
        queue.members += 1
        heappush(queue.entries, (stamp, prefix.order, prefix.id, self._version))

    def discard(self, id: int) -> None:
        known = self._members.pop(id, None)
        if known is not None:
            self._leave(known)

    def lowest(
        self, odds: ReuseOdds, now: int, excluding: Collection[int] = ()
    ) -> Candidate | None:
        """The candidate worth least among the least recently used of each queue.

        What it is worth at tick ``now`` is its rate of reuse times its efficiency; of equals the
        one that was used first goes, then the one of lower order.
        """
        self._rank(odds)
        best: Candidate | None = None
        lowest = (0.0, 0, 0)
        for least, queue in self._ranking:
            if best is not None and least > lowest[0]:
                break
            head = self._head(queue)
            if head is not None and head.prefix.id in excluding:
                head = self._after(queue, excluding)
            if head is None:
                continue
            rate = odds.rate(queue.key[0], now - head.stamp) if head.efficiency else 0.0
            rank = (rate * head.efficiency, head.stamp, head.prefix.order)
            if best is None or rank < lowest:
                best, lowest = head, rank
        return best

    def _rank(self, odds: ReuseOdds) -> None:
        if self._edition != odds.edition:
            self._edition = odds.edition
            self._queues = {key: queue for key, queue in self._queues.items() if queue.members}
            self._ranking, self._unranked = [], list(self._queues.values())
        for queue in self._unranked:
            kind, level, magnitude = queue.key
            least = 0.0
            if magnitude is not None:
                least = odds.least_rate(kind, level) * ldexp(0.5, magnitude)
            insort(self._ranking, (least, queue), key=lambda ranked: ranked[0])
        self._unranked = []

    def _leave(self, candidate: Candidate) -> None:
        queue = candidate.queue
        queue.members -= 1
        if len(queue.entries) > 4 * queue.members + 16:
            queue.entries = [entry for entry in queue.entries if self._stands(entry, candidate)]
            heapify(queue.entries)

    def _stands(self, entry: _Entry, leaving: Candidate) -> bool:
        member = self._members.get(entry[2])
        return member is not None and member is not leaving and member.version == entry[3]

    def _head(self, queue: Queue) -> Candidate | None:
        entries = queue.entries
        while entries:
            *_, id, version = entries[0]
            member = self._members.get(id)
            if member is not None and member.version == version:
                return member
            heappop(entries)
        return None

    def _after(self, queue: Queue, excluding: Collection[int]) -> Candidate | None:
        passed = []
        head = self._head(queue)
        while head is not None and head.prefix.id in excluding:
            passed.append(heappop(queue.entries))
            head = self._head(queue)
        for entry in passed:
            heappush(queue.entries, entry)
        return head

    def _check(self) -> None:
        standing: dict[Queue, set[tuple[int, ...]]] = {}
        for key, queue in self._queues.items():
            assert queue.key == key
            standing[queue] = {entry[2:] for entry in queue.entries}
        for id, member in self._members.items():
            assert (id, member.version) in standing[member.queue], f"prefix {id} stands in no queue"
        for queue in standing:
            members = sum(member.queue is queue for member in self._members.values())
            assert queue.members == members, "a queue has lost count of its members"
