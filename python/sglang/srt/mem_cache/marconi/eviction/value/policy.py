"""Evicts the prefix of lowest value per byte: chance of reuse * FLOPs lost / bytes freed."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Container, Iterator, Sequence
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
from sglang.srt.mem_cache.marconi.eviction.value.openings import ALONE, Openings
from sglang.srt.mem_cache.marconi.eviction.value.queues import (
    FRESHNESS,
    Candidate,
    ValueQueues,
)
from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, HostPool, Pool

AnyPool = Pool | HostPool
_OF_STATES = (Pool.STATE, HostPool.STATE)
#: Evicted prefixes that are remembered, as a multiple of those that are cached, and at least.
EVICTED_A_PREFIX, FEWEST_EVICTED = 4, 1024
#: Hits that may have yet to be counted, so that a decision after a long time meets few.
MOST_HITS = 32
#: Likewise of hints; they are taken in late so that those that tell nothing change nothing.
MOST_HINTS = 64
#: Odds of a later use below which a superseded state is not copied to the host: at the costs of
#: Qwen3-Next, 400 TFLOP/s and 50 GB/s its copy takes 9 % of the time to compute the last 1,000
#: tokens again, of 8,000 tokens 1 %.
LEAST_ODDS = 0.03


@dataclass(frozen=True, slots=True)
class Worth:
    """Why a prefix is worth keeping, or not.

    Attributes:
        kind: its class: role, uses, turns, hint and opening.
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

    Where clients say what follows, an adapter reports it by :meth:`on_hint`. A hint counts until
    the prefix is next used, and is worth what hints like it have proved to be worth.

    An event costs a few binary searches, and a decision a few heads of :class:`ValueQueues`: their
    number is bounded by classes, levels of age and magnitudes of cost, whatever the cache holds.
    A hit is only noted, and counted as of its tick before the next other event.

    Args:
        pools: whose victims it chooses, beside the host's after :meth:`order_host`.
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
        self._queues: dict[AnyPool, ValueQueues] = {
            pool: ValueQueues(self.odds)
            for pool in ((Pool.KV,) if shared else Pool)
            if pool in pools
        }
        self._openings = Openings()
        self._turns = Turns()
        self._expected: dict[AnyPool, Expectations] = {
            pool: Expectations() for pool in self._queues
        }
        self.orders_host = False
        self._hits: deque[tuple[CachedPrefix, Role, int]] = deque()
        self._unplaced: dict[int, CachedPrefix] = {}
        self._hints: OrderedDict[int, Hint] = OrderedDict()
        self._now = 0
        self._renewed = 0

    def order_host(self) -> None:
        """Order what lies on the host too, whose prefixes live on as if they had not moved."""
        self.orders_host = True
        self._queues.update((pool, ValueQueues(self.odds)) for pool in HostPool)
        self._expected.update((pool, Expectations()) for pool in HostPool)

    # -- events

    def on_insert(self, prefix: CachedPrefix, now: int) -> None:
        self._count_hits()
        self._advance(now)
        if prefix.state_survives:
            self._watch(prefix, self._role(prefix), prefix.last_access)
        self._place(prefix)

    def on_hit(self, prefix: CachedPrefix, now: int) -> None:
        # If others wait for it too, the next pass says so.
        self._turns.end(prefix.id)
        self._hints.pop(prefix.id, None)
        self._hits.append((prefix, self._role(prefix), now))
        if len(self._hits) > MOST_HITS:
            self._count_hit()
        if len(self._unplaced) > MOST_HITS:
            self._place(next(iter(self._unplaced.values())))

    def on_change(self, prefix: CachedPrefix) -> None:
        self._count_hits()
        self._advance(prefix.last_access)
        watched, role = self._watched.get(prefix.id), self._role(prefix)
        if not prefix.state_survives:
            if watched is not None:
                del self._watched[prefix.id]
                self._remember(watched)
        elif watched is None:
            self._watch(prefix, role, prefix.last_access)
        elif watched.stamp < prefix.last_access:
            # A state that was put there again is another request's, which may say otherwise.
            del self._watched[prefix.id]
            self._observations.lose(watched)
            self._watch(prefix, role, prefix.last_access, watched.uses, watched)
        elif watched.kind.role is not role:
            self._observations.change(watched, role)
        self._place(prefix)

    def on_remove(self, prefix: CachedPrefix) -> None:
        self._count_hits()
        self._unplaced.pop(prefix.id, None)
        self._hints.pop(prefix.id, None)
        for pool in self._queues:
            self._take_out(prefix.id, pool)
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

    def on_forgotten(self, id: int) -> None:
        """Should a request come back for the evicted state of prefix ``id``, nobody will tell."""
        gone = self._evicted.pop(id, None)
        if gone is not None:
            self._observations.lose(gone)

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
            for pool in self._queues:
                known = self._entry(id, pool)
                if known is not None:
                    self._put(known.prefix, pool, known.efficiency)

    def on_hint(self, id: int, hint: Hint) -> None:
        """The request that left prefix ``id`` as its tail said so; taken in when it is needed."""
        self._hints[id] = hint
        if len(self._hints) > MOST_HINTS:
            self._take_hint()

    def _take_hint(self) -> None:
        """Take in the oldest hint; O(1), and a binary search for each prefix that it is about.

        What others share is no tail of one session. That a session is over also holds of the
        states above that lead to nothing else.
        """
        id, hint = self._hints.popitem(last=False)
        watched, tail = self._watched.get(id), self._candidate(id)
        if watched is None or watched.kind.role is Role.FORK or watched.uses > 1:
            return
        self._mark(watched, hint)
        if hint.ends and tail is not None:
            for above in self._lead_to(tail):
                if above.uses > 1:
                    break
                self._mark(above, hint)

    # -- decisions

    def victim(
        self, pool: AnyPool, now: int, excluding: Container[int] = ()
    ) -> CachedPrefix | None:
        pool = self._order_of(pool)
        queues = self._queues.get(pool)
        if queues is None:
            return None
        if self._hits or self._unplaced:
            self._place_all()
        while self._hints:
            self._take_hint()
        # Most of the time an event has advanced it.
        if now - self._renewed >= FRESHNESS:
            self._advance(now)
        self._now = max(self._now, now)
        lowest = queues.lowest(self._now, excluding)
        expected = self._expected[pool].lowest(excluding)
        if expected is None or (lowest is not None and self._goes_before(lowest, expected)):
            return None if lowest is None else lowest.prefix
        return expected.prefix

    def is_worth_backup(self, prefix: CachedPrefix) -> bool:
        """Whether the host is to have a copy of a state that leaves the device without its KV.

        Not if a deeper one supersedes it, unless traffic shows that it is used all the same: its
        copy takes longer than it saves.
        """
        self._count_hits()
        watched = self._watched.get(prefix.id)
        if watched is None or watched.kind.role is not Role.SUPERSEDED:
            return True
        return self.odds.ever(watched.kind, level_of(self._now - watched.stamp)) >= LEAST_ODDS

    def explain(self, prefix: CachedPrefix, pool: AnyPool) -> Worth:
        """Why ``prefix`` goes when it does, if ``pool`` is short."""
        watched = self._watched.get(prefix.id)
        kind = prefix_class(role_of(prefix)) if watched is None else watched.kind
        age = self._now - (prefix.last_access if watched is None else watched.stamp)
        flops, freed = self._flops(prefix), self._bytes(prefix, pool)
        entry = self._entry(prefix.id, self._order_of(pool))
        # A hint or an opening that tells something since it was put there counts from its next
        # change on.
        placed = entry.queue.key[0] if isinstance(entry, Candidate) else kind
        rate = self.odds.rate(placed, age) if watched is not None else 0.0
        if isinstance(entry, Expected):
            rate = entry.rate
        return Worth(
            kind=kind,
            age=age,
            chance=self.odds.chance(placed, level_of(age)) if watched is not None else 0.0,
            rate=rate,
            flops=flops,
            bytes=freed,
            value=rate * flops / freed if freed else 0.0,
        )

    # -- internals

    def _advance(self, now: int) -> None:
        """Let what is watched grow older."""
        if now > self._now:
            self._now = now
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
            self._watch(prefix, role, now, watched.uses + 1, watched)
            if watched.kind.hint is not None and watched.kind.hint.ends:
                self._go_on(prefix)
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
        before: Observation | None = None,
    ) -> None:
        """Begin to watch a prefix with a state, if it is not watched yet.

        Args:
            stamp: tick of its last use.
            before: how it was watched until then.
        """
        if prefix.id in self._watched:
            return
        gone = self._evicted.pop(prefix.id, None)
        if gone is not None:
            self._observations.lose(gone)
        if before is None:
            turns, opening = self._history(prefix)
        else:
            turns, opening = before.turns, before.opening
        self._watched[prefix.id] = self._observations.begin(
            prefix.id, role, stamp, uses=uses, turns=turns, opening=opening
        )

    def _mark(self, watched: Observation, hint: Hint | None) -> None:
        """Watch a prefix as one of which this was said."""
        if watched.kind.hint is hint:
            return
        before = self.odds.telling(watched.kind)
        self._observations.tell(watched, hint)
        if self.odds.telling(watched.kind) is before:
            return
        for pool in self._queues:
            known = self._entry(watched.id, pool)
            if known is not None:
                self._put(known.prefix, pool, known.efficiency)

    def _go_on(self, prefix: CachedPrefix) -> None:
        """A session that was said to be over is not: nor is what leads to it."""
        for above in self._lead_to(prefix):
            if above.kind.hint is None or not above.kind.hint.ends:
                break
            self._mark(above, None)

    def _lead_to(self, prefix: CachedPrefix | None) -> Iterator[Observation]:
        """The states above a prefix that lead to nothing else, from the deepest up."""
        while prefix is not None and prefix.reuse_id is not None:
            above = self._watched.get(prefix.reuse_id)
            is_shared = prefix.exclusive_from != prefix.reuse_from
            if is_shared or above is None or above.kind.role is Role.FORK:
                return
            prefix = self._candidate(above.id)
            yield above

    def _order_of(self, pool: AnyPool) -> AnyPool:
        """The pool under which the order is kept that serves ``pool``."""
        return Pool.KV if self.shared and isinstance(pool, Pool) else pool

    def _role(self, prefix: CachedPrefix) -> Role:
        """Its role in the tree, but that where prefixes parted once they may part again.

        An agent that edits its history resumes there every turn, also when the branch that it left
        is gone.
        """
        watched = self._watched.get(prefix.id)
        if watched is not None and watched.kind.role is Role.FORK:
            return Role.FORK
        return role_of(prefix)

    def _entry(self, id: int, pool: AnyPool) -> Candidate | Expected | None:
        """A prefix that a pool may evict, as it stands in one of its orders."""
        return self._expected[pool].get(id) or self._queues[pool].get(id)

    def _candidate(self, id: int) -> CachedPrefix | None:
        """A prefix that some pool may evict."""
        for pool in self._queues:
            known = self._entry(id, pool)
            if known is not None:
                return known.prefix
        return None

    def _place(self, prefix: CachedPrefix) -> None:
        """Put a prefix where it stands in the queues of the pools that may evict it."""
        self._unplaced.pop(prefix.id, None)
        flops = self._flops(prefix) if prefix.id in self._watched else 0.0
        for pool in self._queues:
            if self._may_leave(prefix, pool):
                freed = self._bytes(prefix, pool)
                self._put(prefix, pool, flops / freed if freed > 0 else 0.0)
            else:
                self._take_out(prefix.id, pool)

    def _goes_before(self, candidate: Candidate, expected: Expected) -> bool:
        age = self._now - candidate.stamp
        rate = self.odds.rate(candidate.queue.key[0], age)
        key = rate * candidate.efficiency, candidate.stamp, candidate.prefix.order
        return key < expected.key

    def _put(self, prefix: CachedPrefix, pool: AnyPool, efficiency: float) -> None:
        """Enter a prefix that a pool may evict among those that are expected, or the others."""
        id, queues, expected = prefix.id, self._queues[pool], self._expected[pool]
        watched = self._watched.get(id)
        if watched is None:
            expected.discard(id)
            kind = prefix_class(role_of(prefix))
            queues.put(prefix, kind, prefix.last_access, 0.0, self._now)
        elif id in self._turns.level:
            queues.discard(id)
            learnt = self.odds.rate(watched.kind, self._now - watched.stamp)
            rate = max(learnt, self._turns.rate(id))
            expected.put(Expected(prefix, watched.stamp, rate, efficiency))
        else:
            expected.discard(id)
            queues.put(prefix, watched.kind, watched.stamp, efficiency, self._now)

    def _take_out(self, id: int, pool: AnyPool) -> None:
        """A pool may evict it no more."""
        self._queues[pool].discard(id)
        self._expected[pool].discard(id)

    def _history(self, prefix: CachedPrefix) -> tuple[int, int]:
        """Turns that led to a new prefix, and what its session began with.

        What many requests resume at is no session's own, and the first such is an opening, unless
        turns led there: then a session came back to its own history.
        """
        above = None if prefix.reuse_id is None else self._watched.get(prefix.reuse_id)
        if above is None:
            return 0, ALONE
        opening = above.opening
        is_shared = above.uses > 1 or above.kind.role is Role.FORK
        if opening == ALONE and is_shared and not above.turns:
            opening = self._opening_after(above.id)
        return 0 if above.uses > 1 else above.turns + above.uses, opening

    def _opening_after(self, id: int) -> int:
        opening, is_new = self._openings.number(id)
        if is_new:
            self.odds.forget_opening(opening)
        return opening

    def _remember(self, watched: Observation) -> None:
        stale = self._evicted.pop(watched.id, None)
        if stale is not None:
            self._observations.lose(stale)
        self._evicted[watched.id] = watched
        while len(self._evicted) > max(EVICTED_A_PREFIX * len(self._watched), FEWEST_EVICTED):
            self._observations.lose(self._evicted.popitem(last=False)[1])

    def _may_leave(self, prefix: CachedPrefix, pool: AnyPool) -> bool:
        return prefix.may_leave(None if self.shared and isinstance(pool, Pool) else pool)

    def _flops(self, prefix: CachedPrefix) -> float:
        return self._cost.flops(prefix.reuse_from, prefix.depth) if prefix.state_survives else 0.0

    def _bytes(self, prefix: CachedPrefix, pool: AnyPool) -> float:
        """What comes free in the pool that is short: the rest of a victim is given up for it."""
        kv = self._cost.kv_bytes_per_token * (prefix.depth - prefix.exclusive_from)
        if self.shared and isinstance(pool, Pool):
            return prefix.has_state * self._cost.state_bytes + prefix.is_leaf * kv
        return self._cost.state_bytes if pool in _OF_STATES else kv

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
