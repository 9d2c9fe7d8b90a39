"""Evicts the prefix of lowest value per byte: chance of reuse * FLOPs lost / bytes freed."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from sglang.srt.mem_cache.marconi.eviction.value.expectations import (
    Expectations,
    Expected,
    Turns,
)
from sglang.srt.mem_cache.marconi.eviction.value.observations import Observation, Observations
from sglang.srt.mem_cache.marconi.eviction.value.odds import (
    PrefixClass,
    ReuseOdds,
    Role,
    level_of,
    prefix_class,
)
from sglang.srt.mem_cache.marconi.eviction.value.queues import (
    FRESHNESS,
    Candidate,
    ValueQueues,
)
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

#: Evicted prefixes that are remembered, as a multiple of those that are cached, and at least.
EVICTED_A_PREFIX, FEWEST_EVICTED = 4, 1024
#: Hits that may have yet to be counted, so that a decision after a long time meets few.
MOST_HITS = 32


@dataclass(frozen=True, slots=True)
class Worth:
    """Why a prefix is worth keeping, or not.

    Attributes:
        kind: its class: role, uses and turns.
        age: ticks since it was last used.
        chance: probability that it is used before its age doubles.
        rate: uses per tick that keeping it brings, at the horizon at which that pays best, or until
            the turn of a request that waits for it.
        flops: FLOPs that its loss costs the next request that would resume at it.
        bytes: bytes that evicting it frees in the pool that is short.
        value: rate * flops / bytes, in FLOPs per byte and tick; the lowest goes first.
    """

    kind: PrefixClass
    age: int
    chance: float
    rate: float
    flops: float
    bytes: float
    value: float


class ValuePolicy:
    """Policy 3: one currency for everything cached, its odds of reuse learnt from the traffic.

    The value of a prefix is the rate at which requests are expected to resume at it
    (:class:`ReuseOdds`: by class and age) times what its loss would cost, from the deepest state
    that survives above, per byte that comes free in the pool that is short. A prefix without a
    state saves nothing and goes first. Within a class, at costs per byte of the same power of two
    and with odds that fall with age, the order is LRU.

    An evicted state stays under observation for a while: an adapter that notices a request that
    would have resumed there reports it by :meth:`on_return`.

    Where requests wait, an adapter reports by :meth:`on_queue` what they would resume at. These
    prefixes will be used when their turn comes, so that the rate of those whose turn is near is
    high; a turn that is far off counts for less than room that is short now.

    An event costs a few binary searches, and a decision a few heads of :class:`ValueQueues`: their
    number is bounded by classes, levels of age and magnitudes of cost, whatever the cache holds.
    A hit is only noted, and counted as of its tick before the next other event.

    Args:
        pools: whose victims it chooses.
        shared: both pools are one memory, so that whichever is short, a state or a leaf of KV may
            go, and all bytes that come free count.
        odds: by default none were learnt yet.
    """

    def __init__(
        self,
        cost: CostModel,
        pools: frozenset[Pool] = frozenset(Pool),
        *,
        shared: bool = False,
        odds: ReuseOdds | None = None,
    ) -> None:
        self.pools = pools
        self.shared = shared
        self.odds = odds or ReuseOdds()
        self._cost = cost
        self._observations = Observations(self.odds)
        self._watched: dict[int, Observation] = {}
        self._evicted: OrderedDict[int, Observation] = OrderedDict()
        # In shared memory one entry stands for both pools.
        self._queues = {
            pool: ValueQueues(self.odds)
            for pool in ((Pool.KV,) if shared else Pool)
            if pool in pools
        }
        self._turns = Turns()
        self._expected = {pool: Expectations() for pool in self._queues}
        self._hits: deque[tuple[CachedPrefix, Role, int]] = deque()
        self._unplaced: dict[int, CachedPrefix] = {}
        self._now = 0
        self._renewed = 0

    # -- events

    def on_insert(self, prefix: CachedPrefix, now: int) -> None:
        self._count_hits()
        self._advance(now)
        if prefix.has_state:
            self._watch(prefix, role_of(prefix), prefix.last_access)
        self._place(prefix)

    def on_hit(self, prefix: CachedPrefix, now: int) -> None:
        # If others wait for it too, the next pass says so.
        self._turns.end(prefix.id)
        self._hits.append((prefix, role_of(prefix), now))
        if len(self._hits) > MOST_HITS:
            self._count_hit()
        if len(self._unplaced) > MOST_HITS:
            self._place(next(iter(self._unplaced.values())))

    def on_change(self, prefix: CachedPrefix) -> None:
        self._count_hits()
        self._advance(prefix.last_access)
        watched, role = self._watched.get(prefix.id), role_of(prefix)
        if not prefix.has_state:
            if watched is not None:
                del self._watched[prefix.id]
                self._remember(watched)
        elif watched is None:
            self._watch(prefix, role, prefix.last_access)
        elif watched.kind.role is not role or watched.stamp < prefix.last_access:
            del self._watched[prefix.id]
            self._observations.lose(watched)
            self._watch(prefix, role, prefix.last_access, watched.uses, watched.turns)
        self._place(prefix)

    def on_remove(self, prefix: CachedPrefix) -> None:
        self._count_hits()
        self._unplaced.pop(prefix.id, None)
        for pool, queues in self._queues.items():
            queues.discard(prefix.id)
            self._expected[pool].discard(prefix.id)
        watched = self._watched.pop(prefix.id, None)
        if watched is not None:
            self._remember(watched)

    def on_return(self, id: int, now: int) -> None:
        """A request would have resumed at the evicted state of prefix ``id``, and none deeper."""
        self._count_hits()
        self._advance(now)
        gone = self._evicted.pop(id, None)
        if gone is not None:
            self._observations.use(gone)

    def on_queue(self, queue: Sequence[int | None], now: int) -> None:
        """Requests wait that would resume at these prefixes, the next to be served first.

        O(requests that wait), and O(log of it) for each that changes its level.
        """
        if not queue and not self._turns.level:
            return
        self._place_all()
        self._advance(now)
        gone, moved = self._turns.change(queue)
        for id in (*gone, *moved):
            for pool, queues in self._queues.items():
                known: Candidate | Expected | None = self._expected[pool].get(id) or queues.get(id)
                if known is not None:
                    self._put(known.prefix, pool, known.efficiency)

    # -- decisions

    def victim(self, pool: Pool, now: int, excluding: Collection[int] = ()) -> CachedPrefix | None:
        queues = self._queues.get(Pool.KV if self.shared else pool)
        if queues is None:
            return None
        if self._hits or self._unplaced:
            self._place_all()
        # Most of the time an event has advanced it.
        if now - self._renewed >= FRESHNESS:
            self._advance(now)
        self._now = max(self._now, now)
        lowest = queues.lowest(self._now, excluding)
        expected = self._expected[Pool.KV if self.shared else pool].lowest(excluding)
        if expected is None or (lowest is not None and self._goes_before(lowest, expected)):
            return None if lowest is None else lowest.prefix
        return expected.prefix

    def explain(self, prefix: CachedPrefix, pool: Pool) -> Worth:
        """Why ``prefix`` goes when it does, if ``pool`` is short."""
        watched = self._watched.get(prefix.id)
        kind = prefix_class(role_of(prefix)) if watched is None else watched.kind
        age = self._now - (prefix.last_access if watched is None else watched.stamp)
        flops, freed = self._flops(prefix), self._bytes(prefix, pool)
        rate = self.odds.rate(kind, age) if watched is not None else 0.0
        expected = self._expected[Pool.KV if self.shared else pool].get(prefix.id)
        if expected is not None:
            rate = expected.rate
        return Worth(
            kind=kind,
            age=age,
            chance=self.odds.chance(kind, level_of(age)) if watched is not None else 0.0,
            rate=rate,
            flops=flops,
            bytes=freed,
            value=rate * flops / freed if freed else 0.0,
        )

    # -- internals

    def _advance(self, now: int) -> None:
        """Let what is watched grow older."""
        self._now = max(self._now, now)
        self._observations.advance(self._now)
        if self._now - self._renewed >= FRESHNESS:
            self._renewed = self._now
            self.odds.renew()
            for queues in self._queues.values():
                queues.renew(self._now)

    def _place_all(self) -> None:
        self._count_hits()
        while self._unplaced:
            self._place(next(iter(self._unplaced.values())))

    def _count_hits(self) -> None:
        while self._hits:
            self._count_hit()

    def _count_hit(self) -> None:
        prefix, role, now = self._hits.popleft()
        self._advance(now)
        watched = self._watched.pop(prefix.id, None)
        if watched is not None:
            self._observations.use(watched)
            self._watch(prefix, role, now, watched.uses + 1, watched.turns)
        else:
            self._watch(prefix, role, now)
        # A change (the lock) mostly follows, and one place in the queues does for both.
        self._unplaced[prefix.id] = prefix

    def _watch(
        self,
        prefix: CachedPrefix,
        role: Role,
        stamp: int,
        uses: int = 0,
        turns: int | None = None,
    ) -> None:
        """Begin to watch a prefix with a state, if it is not watched yet.

        Args:
            stamp: tick of its last use.
            turns: if they were counted before.
        """
        if prefix.id in self._watched:
            return
        gone = self._evicted.pop(prefix.id, None)
        if gone is not None:
            self._observations.lose(gone)
        if turns is None:
            turns = self._turns_before(prefix)
        self._watched[prefix.id] = self._observations.begin(
            prefix.id, role, stamp, uses=uses, turns=turns
        )

    def _place(self, prefix: CachedPrefix) -> None:
        """Put a prefix where it stands in the queues of the pools that may evict it."""
        self._unplaced.pop(prefix.id, None)
        watched = self._watched.get(prefix.id)
        flops = self._flops(prefix)
        for pool, queues in self._queues.items():
            if not self._may_leave(prefix, pool):
                queues.discard(prefix.id)
                self._expected[pool].discard(prefix.id)
                continue
            freed = self._bytes(prefix, pool)
            worth = watched is not None and freed > 0
            self._put(prefix, pool, flops / freed if worth else 0.0)

    def _goes_before(self, candidate: Candidate, expected: Expected) -> bool:
        age = self._now - candidate.stamp
        rate = self.odds.rate(candidate.queue.key[0], age)
        key = rate * candidate.efficiency, candidate.stamp, candidate.prefix.order
        return key < expected.key

    def _put(self, prefix: CachedPrefix, pool: Pool, efficiency: float) -> None:
        """Enter a prefix that a pool may evict among those that are expected, or the others."""
        id, queues, expected = prefix.id, self._queues[pool], self._expected[pool]
        watched = self._watched.get(id)
        if watched is None:
            expected.discard(id)
            kind = prefix_class(role_of(prefix))
            queues.put(prefix, kind, prefix.last_access, 0.0, self._now)
        elif id in self._turns:
            queues.discard(id)
            learnt = self.odds.rate(watched.kind, self._now - watched.stamp)
            rate = max(learnt, self._turns.rate(id))
            expected.put(Expected(prefix, watched.stamp, rate, efficiency))
        else:
            expected.discard(id)
            queues.put(prefix, watched.kind, watched.stamp, efficiency, self._now)

    def _turns_before(self, prefix: CachedPrefix) -> int:
        """Turns that led to a new prefix; what many requests resume at is no session's own."""
        above = None if prefix.reuse_id is None else self._watched.get(prefix.reuse_id)
        return 0 if above is None or above.uses > 1 else above.turns + above.uses

    def _remember(self, watched: Observation) -> None:
        stale = self._evicted.pop(watched.id, None)
        if stale is not None:
            self._observations.lose(stale)
        self._evicted[watched.id] = watched
        while len(self._evicted) > max(EVICTED_A_PREFIX * len(self._watched), FEWEST_EVICTED):
            self._observations.lose(self._evicted.popitem(last=False)[1])

    def _may_leave(self, prefix: CachedPrefix, pool: Pool) -> bool:
        if self.shared:
            return any(prefix.may_leave(either) for either in Pool)
        return prefix.may_leave(pool)

    def _flops(self, prefix: CachedPrefix) -> float:
        return self._cost.flops(prefix.reuse_from, prefix.depth) if prefix.has_state else 0.0

    def _bytes(self, prefix: CachedPrefix, pool: Pool) -> float:
        """What comes free in the pool that is short: the rest of a victim is given up for it."""
        kv = self._cost.kv_bytes_per_token * (prefix.depth - prefix.exclusive_from)
        if self.shared:
            return prefix.has_state * self._cost.state_bytes + prefix.is_leaf * kv
        if pool is Pool.STATE:
            return self._cost.state_bytes
        return kv

    def _check(self) -> None:
        self._place_all()
        for pool, queues in self._queues.items():
            queues._check()
            self._expected[pool]._check()
            for expected in self._expected[pool]:
                assert expected.prefix.id in self._turns, "nobody waits for what is expected"
                assert queues.get(expected.prefix.id) is None, "a candidate is in two places"
            for id, watched in self._watched.items():
                candidate = queues.get(id)
                if candidate is not None:
                    assert self._may_leave(candidate.prefix, pool), (
                        f"prefix {id} may not leave {pool}"
                    )
                    assert candidate.stamp == watched.stamp, f"prefix {id} has a stale stamp"
        assert not self._evicted.keys() & self._watched.keys(), (
            "a cached state is remembered as evicted"
        )


def role_of(prefix: CachedPrefix) -> Role:
    """The role of a prefix, from the number of its children."""
    if prefix.children == 0:
        return Role.RESUMABLE
    return Role.SUPERSEDED if prefix.children == 1 else Role.FORK
