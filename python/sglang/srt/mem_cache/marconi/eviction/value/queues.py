"""Finds the candidate of lowest value in one pool: queues of what differs in last use alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import frexp, inf

from sglang.srt.mem_cache.marconi.eviction.access_order import AccessOrder
from sglang.srt.mem_cache.marconi.eviction.value.evidence import LEVELS
from sglang.srt.mem_cache.marconi.eviction.value.odds import (
    FIRST_AGES,
    WIDTHS,
    PrefixClass,
    ReuseOdds,
    level_of,
)
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix

#: Class, and binary order of magnitude of FLOPs per byte (``None``: saves nothing).
QueueKey = tuple[PrefixClass, int | None]
#: Ticks after which all candidates are to be banded anew.
FRESHNESS = 128
#: The first entry of a level is looked for from where it was, in steps that grow from this one.
NEAR = 4
#: What rounding may take off a product.
ROUNDED = 1 - 1e-12


@dataclass(slots=True, eq=False)
class AgeQueue:
    """Candidates of one class that cost about the same, by last use.

    Attributes:
        floor: no member's efficiency is lower.
        entries: the members.
        bands: its part of the ranking, the youngest age first.
    """

    key: QueueKey
    floor: float
    entries: AccessOrder = field(default_factory=AccessOrder)
    bands: list[Band] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Band:
    """The members of one queue whose age lies at one level; a decision looks at the first of them.

    Attributes:
        least: no member is worth less, until the ranking is renewed.
        start, end: the level holds ages from ``start`` up to ``end``, in ticks.
        beyond: the queue's next older band begins at this age; 0: this is its oldest band.
        rate, growth: uses expected per tick at age ``start``, and what each tick of age adds.
        place: where its first member stood in the queue when a decision last looked.
    """

    queue: AgeQueue
    level: int
    least: float
    start: int
    end: int
    beyond: int
    rate: float
    growth: float
    place: int = 0


@dataclass(slots=True, eq=False)
class Candidate:
    """A prefix that the pool may evict, as it stands in a queue.

    Attributes:
        stamp: tick of its last use.
        efficiency: FLOPs lost per byte freed.
    """

    prefix: CachedPrefix
    queue: AgeQueue
    stamp: int
    efficiency: float


class ValueQueues:
    """Age queues by class and cost; their number is bounded, whatever is cached.

    ``put`` and ``discard`` are a binary search and a move of the entries behind: what was used just
    now, as most that change were, has none behind.

    A decision takes the least recently used of each queue at each level of age, in the order of the
    least that it can be worth there, and ends where that exceeds the lowest value seen: these are
    few. The order is made anew by ``renew`` and added to meanwhile; what has grown to another level
    since then is still met in its old band.
    """

    def __init__(self, odds: ReuseOdds) -> None:
        self._odds = odds
        self._members: dict[int, Candidate] = {}
        self._queues: dict[QueueKey, AgeQueue] = {}
        self._bands: list[Band] = []
        # Queues of one class share them.
        self._least_rates: dict[tuple[PrefixClass, int, int], float] = {}

    def __len__(self) -> int:
        return len(self._members)

    def get(self, id: int) -> Candidate | None:
        return self._members.get(id)

    def put(
        self, prefix: CachedPrefix, kind: PrefixClass, stamp: int, efficiency: float, now: int
    ) -> None:
        """Enter a prefix, or move it to where it belongs now."""
        if kind.hint is not None or kind.opening is not None:
            kind = self._odds.telling(kind)
        key = (kind, frexp(efficiency)[1] if efficiency > 0 else None)
        known = self._members.get(prefix.id)
        if known is not None and known.queue.key == key and known.stamp == stamp:
            queue, known.efficiency = known.queue, efficiency
        else:
            if known is not None:
                self._leave(known)
            queue = self._queue(key, efficiency)
            entries, order = queue.entries, prefix.order
            entries.insert(entries.place(stamp, order), stamp, order, prefix.id)
            self._members[prefix.id] = Candidate(prefix, queue, stamp, efficiency)
        level, bands = level_of(now - stamp), queue.bands
        # Most were used just now, and the youngest band is the first.
        is_banded = bands and (bands[0].level == level or any(b.level == level for b in bands))
        if not is_banded or efficiency < queue.floor:
            queue.floor = min(queue.floor, efficiency)
            self._bands = [band for band in self._bands if band.queue is not queue]
            self._band_at(queue, sorted({level, *(band.level for band in bands)}))
            self._bands.sort(key=_least)

    def discard(self, id: int) -> None:
        known = self._members.pop(id, None)
        if known is not None:
            self._leave(known)

    def renew(self, now: int) -> None:
        """Take note of the ages at tick ``now``, and of the odds; due every ``FRESHNESS`` ticks."""
        self._queues = {key: queue for key, queue in self._queues.items() if len(queue.entries)}
        self._bands = []
        self._least_rates.clear()
        for queue in self._queues.values():
            self._band_at(queue, _levels(queue.entries.stamps, now))
        self._bands.sort(key=_least)

    def lowest(self, now: int, excluding: Container[int] = ()) -> Candidate | None:
        """The candidate worth least among the least recently used of each queue and level.

        What it is worth at tick ``now`` is its rate of reuse times its efficiency; of equals the
        one that was used first goes, then the one of lower order.
        """
        best: Candidate | None = None
        least = inf
        for band in self._bands:
            if band.least > least:
                break
            at = _head(band, now, excluding)
            if at is None:
                continue
            entries = band.queue.entries
            age = now - entries.stamps[at]
            if age < band.end:
                rate = band.rate + (age - band.start) * band.growth
            else:
                rate = self._odds.rate(band.queue.key[0], age)
            head = self._members[entries.ids[at]]
            worth = rate * head.efficiency
            if best is None or worth < least or (worth == least and _goes_before(head, best)):
                best, least = head, worth
        return best

    def _queue(self, key: QueueKey, floor: float) -> AgeQueue:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = AgeQueue(key, floor)
        return queue

    def _band_at(self, queue: AgeQueue, levels: list[int]) -> None:
        """Give a queue a band at each level, in ascending order; the caller sorts ``_bands``."""
        kind, _ = queue.key
        queue.bands = []
        for level, above in zip_longest(levels, levels[1:]):
            rate, growth = self._odds.rates_within(kind, level)
            start = FIRST_AGES[level]
            end = start + WIDTHS[level]
            beyond = 0 if above is None else FIRST_AGES[above]
            oldest = end + FRESHNESS
            if beyond:
                oldest = min(oldest, beyond)
            least = self._least_rate(kind, level, oldest) * queue.floor * ROUNDED
            queue.bands.append(Band(queue, level, least, start, end, beyond, rate, growth))
        self._bands += queue.bands

    def _least_rate(self, kind: PrefixClass, level: int, oldest: int) -> float:
        """The lowest rate of reuse from where a level begins up to an age; until ``renew``."""
        known = self._least_rates.get((kind, level, oldest))
        if known is not None:
            return known
        least = self._odds.rate(kind, oldest)
        for at in range(level, LEVELS):
            if FIRST_AGES[at] > oldest:
                break
            # Between the ages at which levels begin it changes evenly.
            least = min(least, self._odds.rates_within(kind, at)[0])
        self._least_rates[kind, level, oldest] = least
        return least

    def _leave(self, candidate: Candidate) -> None:
        entries = candidate.queue.entries
        entries.delete(entries.place(candidate.stamp, candidate.prefix.order))

    def _check(self) -> None:
        for key, queue in self._queues.items():
            assert queue.key == key
            queue.entries._check()
            banded = {band for band in self._bands if band.queue is queue}
            assert banded == set(queue.bands), "a queue and the ranking disagree on its bands"
            levels = [band.level for band in queue.bands]
            assert levels == sorted(set(levels)), "the bands of a queue are out of order"
        for id, member in self._members.items():
            assert member.prefix.id == id
            assert member.efficiency >= member.queue.floor, "a queue has a member below its floor"
            assert self._queues[member.queue.key] is member.queue
            entries = member.queue.entries
            at = entries.place(member.stamp, member.prefix.order)
            found = entries.stamps[at], entries.orders[at], entries.ids[at]
            assert found == (member.stamp, member.prefix.order, id), f"prefix {id} is misplaced"
        count = sum(len(queue.entries) for queue in self._queues.values())
        assert count == len(self._members), "a queue has lost count of its members"


def _head(band: Band, now: int, excluding: Container[int]) -> int | None:
    """Where the least recently used member of a band stands in its queue; ``None`` if it is empty.

    Args:
        excluding: ids to pass over.
    """
    entries = band.queue.entries
    stamps = entries.stamps
    at = 0
    if band.beyond:
        at = band.place = _first_since(stamps, now - band.beyond + 1, band.place)
    last = now - band.start
    while at < len(stamps) and stamps[at] <= last:
        if not excluding or entries.ids[at] not in excluding:
            return at
        at += 1
    return None


def _goes_before(one: Candidate, other: Candidate) -> bool:
    """Of two that are worth the same."""
    return (one.stamp, one.prefix.order) < (other.stamp, other.prefix.order)


def _first_since(stamps: Sequence[int], stamp: int, near: int) -> int:
    """Place of the first that is not below ``stamp``, looked for near a place first."""
    low, length = min(near, len(stamps)), len(stamps)
    high, step = low, NEAR
    while high < length and stamps[high] < stamp:
        low = high + 1
        high += step
        step *= 2
    while low > 0 and stamps[low - 1] >= stamp:
        high = low - 1
        low -= step
        step *= 2
    return bisect_left(stamps, stamp, max(low, 0), min(high, length))


def _least(band: Band) -> float:
    return band.least


def _levels(stamps: Sequence[int], now: int) -> list[int]:
    """The levels of age at which a queue has members, and 0; ascending, O(levels log n)."""
    levels = []
    at = 0
    while at < len(stamps):
        level = level_of(now - stamps[at])
        if not level:
            break
        levels.append(level)
        at = bisect_left(stamps, now - FIRST_AGES[level] + 1, at)
    # What is put in was mostly used just now.
    return [0, *reversed(levels)]
