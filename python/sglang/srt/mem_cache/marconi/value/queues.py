"""The candidates of one pool, in queues of what is alike but for its last use."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import zip_longest
from math import frexp, inf, ldexp

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix
from sglang.srt.mem_cache.marconi.value.odds import (
    FIRST_AGES,
    WIDTHS,
    PrefixClass,
    ReuseOdds,
    level_of,
)

#: Class, and binary order of magnitude of FLOPs per byte (``None``: saves nothing).
QueueKey = tuple[PrefixClass, int | None]
#: Stamp, order and id.
Entry = tuple[int, int, int]


@dataclass(slots=True, eq=False)
class Queue:
    """Candidates of one class that cost about the same, by last use.

    Attributes:
        entries: ascending.
        ranks: where it is ranked, the youngest age first.
    """

    key: QueueKey
    entries: list[Entry] = field(default_factory=list)
    ranks: list[Rank] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Rank:
    """The members of a queue at one level of age, as of when the queues were ranked.

    Attributes:
        least: the least that one can be worth there.
        start, end: ages that the level begins and ends at, in ticks.
        beyond: age at which the next level begins that the queue is ranked at; 0 if there is none.
        rate, growth: rate of reuse at ``start``, and what it grows by a tick.
    """

    queue: Queue
    level: int
    least: float
    start: int
    end: int
    beyond: int
    rate: float
    growth: float


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
        self._ranking: list[Rank] = []

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
        if not any(rank.level == level for rank in queue.ranks):
            levels = sorted([*(rank.level for rank in queue.ranks), level])
            self._ranking = [rank for rank in self._ranking if rank.queue is not queue]
            self._rank_at(queue, levels)
            self._ranking.sort(key=_least)

    def discard(self, id: int) -> None:
        known = self._members.pop(id, None)
        if known is not None:
            self._leave(known)

    def rank(self, now: int) -> None:
        """Take note of the ages at tick ``now``, and of the odds."""
        self._queues = {key: queue for key, queue in self._queues.items() if queue.entries}
        self._ranking = []
        for queue in self._queues.values():
            self._rank_at(queue, _levels(queue.entries, now))
        self._ranking.sort(key=_least)

    def lowest(self, now: int, excluding: Collection[int] = ()) -> Candidate | None:
        """The candidate worth least among the least recently used of each queue and level.

        What it is worth at tick ``now`` is its rate of reuse times its efficiency; of equals the
        one that was used first goes, then the one of lower order.
        """
        best: Candidate | None = None
        least = inf
        for rank in self._ranking:
            if rank.least > least:
                break
            head = self._head(rank, now, excluding)
            if head is None:
                continue
            age = now - head.stamp
            if age < rank.end:
                rate = rank.rate + (age - rank.start) * rank.growth
            else:
                rate = self._odds.rate(rank.queue.key[0], age)
            worth = rate * head.efficiency
            if best is None or worth < least or (worth == least and _sooner(head, best)):
                best, least = head, worth
        return best

    def _rank_at(self, queue: Queue, levels: list[int]) -> None:
        """Enter a queue into the ranking, out of order; levels ascend."""
        kind, magnitude = queue.key
        queue.ranks = []
        for level, above in zip_longest(levels, levels[1:]):
            rate, growth = self._odds.rates_within(kind, level)
            least = 0.0
            if magnitude is not None:
                least = min(rate, rate + growth * WIDTHS[level]) * ldexp(0.5, magnitude)
            start = FIRST_AGES[level]
            beyond = 0 if above is None else FIRST_AGES[above]
            end = start + WIDTHS[level]
            queue.ranks.append(Rank(queue, level, least, start, end, beyond, rate, growth))
        self._ranking += queue.ranks

    def _leave(self, candidate: Candidate) -> None:
        entries = candidate.queue.entries
        entry = (candidate.stamp, candidate.prefix.order, candidate.prefix.id)
        del entries[bisect_left(entries, entry)]

    def _head(self, rank: Rank, now: int, excluding: Collection[int]) -> Candidate | None:
        """The first of a queue that is older than a rank's level begins, and in no later rank."""
        entries = rank.queue.entries
        at = bisect_left(entries, (now - rank.beyond + 1,)) if rank.beyond else 0
        last = now - rank.start
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
            ranked = {rank for rank in self._ranking if rank.queue is queue}
            assert ranked == set(queue.ranks), "a queue is not ranked where it says"
            levels = [rank.level for rank in queue.ranks]
            assert levels == sorted(set(levels)), "the ranks of a queue are out of order"
        for id, member in self._members.items():
            entry = (member.stamp, member.prefix.order, id)
            assert self._queues[member.queue.key] is member.queue
            assert entry in member.queue.entries, f"prefix {id} stands in no queue"
        entries = sum(len(queue.entries) for queue in self._queues.values())
        assert entries == len(self._members), "a queue has lost count of its members"


def _least(rank: Rank) -> float:
    return rank.least


def _sooner(one: Candidate, other: Candidate) -> bool:
    return (one.stamp, one.prefix.order) < (other.stamp, other.prefix.order)


def _levels(entries: list[Entry], now: int) -> list[int]:
    """The levels of age at which a queue has members, and 0; ascending, O(levels log n)."""
    levels = []
    at = 0
    while at < len(entries):
        level = level_of(now - entries[at][0])
        if not level:
            break
        levels.append(level)
        at = bisect_left(entries, (now - FIRST_AGES[level] + 1,), at)
    # What is put in was mostly used just now.
    return [0, *reversed(levels)]
