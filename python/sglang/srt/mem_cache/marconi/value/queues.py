"""The candidates of one pool, in queues within which the least recently used is worth least."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import frexp

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix
from sglang.srt.mem_cache.marconi.value.odds import PrefixClass

#: Class, level of age, binary order of magnitude of FLOPs per byte (``None``: saves nothing).
QueueKey = tuple[PrefixClass, int, int | None]
_Entry = tuple[int, int, int, int]


@dataclass(slots=True)
class Candidate:
    """A prefix that the pool may evict, as it stands in a queue.

    Attributes:
        stamp: tick of its last use.
        efficiency: FLOPs lost per byte freed.
    """

    prefix: CachedPrefix
    key: QueueKey
    stamp: int
    efficiency: float
    version: int


class Queues:
    """Queues by class, age and cost; the number of queues is bounded, whatever is cached.

    ``put`` and ``discard`` are O(log n); ``heads`` is O(queues), amortised.
    """

    def __init__(self) -> None:
        self._members: dict[int, Candidate] = {}
        self._queues: dict[QueueKey, list[_Entry]] = {}
        self._entries = 0
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
        known = self._members.get(prefix.id)
        if known is not None and known.key == key and known.stamp == stamp:
            known.efficiency = efficiency
            return
        self._version += 1
        self._members[prefix.id] = Candidate(prefix, key, stamp, efficiency, self._version)
        self._push(key, (stamp, prefix.order, prefix.id, self._version))
        if self._entries > 4 * len(self._members) + 256:
            self._compact()

    def discard(self, id: int) -> None:
        self._members.pop(id, None)

    def heads(self, excluding: Collection[int] = ()) -> Iterator[Candidate]:
        """The least recently used of each queue, ties by order."""
        for key in list(self._queues):
            queue = self._queues[key]
            head = self._head(queue)
            if head is None:
                del self._queues[key]
            elif head.prefix.id not in excluding:
                yield head
            else:
                yield from self._after(queue, excluding)

    def _head(self, queue: list[_Entry]) -> Candidate | None:
        while queue:
            *_, id, version = queue[0]
            member = self._members.get(id)
            if member is not None and member.version == version:
                return member
            heappop(queue)
            self._entries -= 1
        return None

    def _after(self, queue: list[_Entry], excluding: Collection[int]) -> Iterator[Candidate]:
        passed = []
        head = self._head(queue)
        while head is not None and head.prefix.id in excluding:
            passed.append(heappop(queue))
            head = self._head(queue)
        for entry in passed:
            heappush(queue, entry)
        if head is not None:
            yield head

    def _push(self, key: QueueKey, entry: _Entry) -> None:
        heappush(self._queues.setdefault(key, []), entry)
        self._entries += 1

    def _compact(self) -> None:
        """Forget the entries that no longer stand for a member."""
        self._queues = {}
        for id, member in self._members.items():
            entry = (member.stamp, member.prefix.order, id, member.version)
            self._queues.setdefault(member.key, []).append(entry)
        for queue in self._queues.values():
            heapify(queue)
        self._entries = len(self._members)

    def _check(self) -> None:
        assert self._entries == sum(len(queue) for queue in self._queues.values())
        standing = {entry[2:] for queue in self._queues.values() for entry in queue}
        for id, member in self._members.items():
            assert (id, member.version) in standing, f"prefix {id} stands in no queue"
