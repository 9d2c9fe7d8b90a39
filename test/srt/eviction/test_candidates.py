"""The index of candidates against a scan of them, victim by victim, ties included."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sglang.srt.mem_cache.marconi.eviction.candidates import Candidates
from sglang.srt.mem_cache.marconi.eviction.staircase import LONG
from sglang.srt.mem_cache.marconi.eviction.stamp_tree import FANOUT, StampTree
from sglang.srt.mem_cache.marconi.eviction.utility import Utility, utilities
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from speed.scanned_candidates import ScannedCandidates

ALPHAS = [0.0, 1e-300, 1e-9, 0.25, 0.5, 2.0, 1e9, 1e300]


#: What an index can be asked about: one pool, both, or the memory that they share.
POOLS: list[tuple[Pool | None, ...]] = [(Pool.STATE,), (Pool.KV,), tuple(Pool), (None,)]


def make(id: int, last_access: int, children: int = 0, is_leaf: bool = True) -> CachedPrefix:
    return CachedPrefix(
        id=id,
        order=id,
        depth=10,
        segment_from=0,
        exclusive_from=0,
        reuse_from=0,
        children=children,
        has_state=True,
        is_leaf=is_leaf,
        state_locked=False,
        last_access=last_access,
    )


class Both:
    """The index and a scan a pool, given the same candidates; each answer is compared."""

    def __init__(self, pools: tuple[Pool | None, ...] = (Pool.STATE,)) -> None:
        self.pools = pools
        self.efficiencies: dict[int, float] = {}
        self.prefixes: dict[int, CachedPrefix] = {}
        self.index = Candidates(pools, self.efficiency)
        self.scans = {pool: ScannedCandidates(pool, self.efficiency) for pool in pools}

    def efficiency(self, prefix: CachedPrefix) -> float:
        return self.efficiencies[prefix.id]

    def put(self, prefix: CachedPrefix, efficiency: float) -> None:
        self.efficiencies[prefix.id] = efficiency
        self.prefixes[prefix.id] = prefix
        self.index.put(prefix)
        for scan in self.scans.values():
            scan.put(prefix)

    def discard(self, prefix: CachedPrefix) -> None:
        self.prefixes.pop(prefix.id, None)
        self.index.discard(prefix)
        for scan in self.scans.values():
            scan.discard(prefix)

    def lowest(
        self, now: int, alpha: float, excluding: frozenset[int] = frozenset(), turn: int = 0
    ) -> CachedPrefix | None:
        """Of the pool whose ``turn`` it is."""
        pool = self.pools[turn % len(self.pools)]
        victim = self.index.lowest(pool, now, alpha, excluding)
        assert victim is self.scans[pool].lowest(pool, now, alpha, excluding)
        return victim

    def check(self) -> None:
        self.index._check()
        members: set[int] = set()
        for scan in self.scans.values():
            scan._check()
            members |= {prefix.id for prefix in scan}
        assert {prefix.id for prefix in self.index} == members
        assert len(self.index) == len(members)


# A few values collide all the time; the others differ by less than rounding can tell, or by all.
EFFICIENCIES = st.one_of(
    st.integers(0, 3).map(float),
    st.sampled_from([0.0, 5e-324, 1e-300, 1.0, 1.0 + 2**-52, 1.0 + 2**-51, 1e15, 1e300, 1.7e308]),
    st.floats(0, 1e6),
)


class Histories(RuleBasedStateMachine):
    """Random histories of the pools, as a tree would report them and as it never would."""

    @initialize(
        start=st.sampled_from([0, 10, 10**9, 2**53 - 3, 10**18]), pools=st.sampled_from(POOLS)
    )
    def begin(self, start: int, pools: tuple[Pool | None, ...]) -> None:
        self.both = Both(pools)
        self.now = start
        self.next_id = 0

    def pick(self, choice: int) -> CachedPrefix | None:
        known = list(self.both.prefixes.values())
        return known[choice % len(known)] if known else None

    @rule(ticks=st.sampled_from([0, 1, 1, 2, 50, 10**7]))
    def pass_time(self, ticks: int) -> None:
        self.now += ticks

    @rule(
        efficiencies=st.lists(EFFICIENCIES, min_size=1, max_size=40),
        age=st.integers(-2, 60),
        same_tick=st.booleans(),
        children=st.sampled_from([0, 0, 0, 1, 2, 3]),
        is_leaf=st.booleans(),
    )
    def insert(
        self,
        efficiencies: list[float],
        age: int,
        same_tick: bool,
        children: int,
        is_leaf: bool,
    ) -> None:
        for i, efficiency in enumerate(efficiencies):
            stamp = max(self.now - age + (0 if same_tick else i % 7), 0)
            self.both.put(make(self.next_id, stamp, children, is_leaf), efficiency)
            self.next_id += 1

    @rule(choice=st.integers(0, 10**6), efficiency=st.none() | EFFICIENCIES)
    def hit(self, choice: int, efficiency: float | None) -> None:
        prefix = self.pick(choice)
        if prefix is not None:
            prefix.last_access = self.now
            self.both.put(
                prefix,
                self.both.efficiencies[prefix.id] if efficiency is None else efficiency,
            )

    @rule(
        choice=st.integers(0, 10**6),
        efficiency=EFFICIENCIES,
        children=st.integers(0, 3),
        locked=st.sampled_from([False, False, True]),
        has_state=st.booleans(),
        is_leaf=st.booleans(),
    )
    def change(
        self,
        choice: int,
        efficiency: float,
        children: int,
        locked: bool,
        has_state: bool,
        is_leaf: bool,
    ) -> None:
        prefix = self.pick(choice)
        if prefix is not None:
            prefix.children, prefix.state_locked = children, locked
            prefix.has_state, prefix.is_leaf = has_state, is_leaf
            self.both.put(prefix, efficiency)

    @rule(choice=st.integers(0, 10**6))
    def discard(self, choice: int) -> None:
        prefix = self.pick(choice)
        if prefix is not None:
            self.both.discard(prefix)
            self.both.discard(prefix)

    @rule(alpha=st.sampled_from(ALPHAS), victims=st.integers(1, 30))
    def evict(self, alpha: float, victims: int) -> None:
        for turn in range(victims):
            victim = self.both.lowest(self.now, alpha, turn=turn)
            if victim is not None:
                self.both.discard(victim)

    @rule(
        alpha=st.sampled_from(ALPHAS),
        excluding=st.frozensets(st.integers(0, 60), max_size=12),
        more=st.integers(0, 5),
        turn=st.integers(0, 1),
    )
    def walk_past_survivors(
        self, alpha: float, excluding: frozenset[int], more: int, turn: int
    ) -> None:
        for _ in range(more + 1):
            victim = self.both.lowest(self.now, alpha, excluding, turn)
            if victim is None:
                return
            excluding |= {victim.id}

    @invariant()
    def is_sound(self) -> None:
        if hasattr(self, "both"):
            self.both.check()


Histories.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, 1e9])
@pytest.mark.parametrize("pools", POOLS)
@pytest.mark.parametrize("stamps,values", [(3000, 10**6), (3000, 3), (5, 10**6), (1, 2), (40, 1)])
def test_a_large_pool_leaves_in_the_order_of_the_scan(alpha, pools, stamps, values):
    """Several levels deep, down to the last one; thin nodes join on the way."""
    rng = random.Random(stamps * values)
    both = Both(pools)
    for id in range(FANOUT * 30):
        children = 2 if id % 50 == 0 else 0
        both.put(
            make(id, rng.randrange(stamps), children, rng.random() < 0.5),
            float(rng.randrange(values)),
        )
    both.index._check()
    now = stamps + 1
    for step in range(FANOUT * 30):
        if step % 3 == 0:
            hit = rng.choice(list(both.prefixes.values()))
            hit.last_access, hit.is_leaf = now, not hit.is_leaf
            both.put(hit, both.efficiencies[hit.id])
        if step % 2 == 0:
            now += 1
        victim = both.lowest(now, alpha, turn=step)
        if victim is not None:
            both.discard(victim)
        if step % 40 == 0:
            both.index._check()
    for turn in range(len(pools)):
        while (victim := both.lowest(now, alpha, turn=turn)) is not None:
            both.discard(victim)
    assert len(both.index) == 0


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1e9])
@pytest.mark.parametrize("values", [10**6, 40])
def test_a_long_staircase_leaves_in_the_order_of_the_scan(alpha, values):
    """The later a prefix was used, the less it saves: nearly all of them are steps."""
    rng = random.Random(values)
    both = Both()
    count = LONG * 12
    for id in rng.sample(range(count), count):
        both.put(make(id, 2 * id), float((count - id) * values // count))
    both.index._check()
    for step in range(count):
        both.discard(both.lowest(2 * count + step // 3, alpha))
        if step % 40 == 0:
            both.index._check()
    assert len(both.index) == 0


@given(
    st.lists(st.tuples(st.integers(0, 2**60), EFFICIENCIES), min_size=1, max_size=20),
    st.sampled_from(ALPHAS),
    st.integers(0, 2**60),
    st.booleans(),
)
def test_scores_of_many_are_those_of_each(entries, alpha, now, later):
    stamps, efficiencies = zip(*sorted(entries), strict=True)
    now = max(now, stamps[-1] + 1) if later else now
    recencies = [1.0 / max(now - stamp, 1) for stamp in stamps]
    utility = Utility(
        now, alpha, min(recencies), max(recencies), min(efficiencies), max(efficiencies)
    )
    assert utility.scores(stamps, efficiencies) == list(map(utility.score, stamps, efficiencies))


@given(
    st.integers(2, 2**24),
    st.sampled_from(ALPHAS[:-2]),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.integers(1, 2**24),
)
def test_where_ticks_are_told_a_later_access_scores_higher(oldest, alpha, between, share, latest):
    now, latest = 2**60, min(latest, oldest)
    utility = Utility(now, alpha, 1.0 / oldest, 1.0 / latest, 0.0, 1.0)
    age = latest + 1 + int(between * (oldest - latest - 1))
    if utility.tells_ticks(now - latest) and latest < oldest:
        assert utility.score(now - age, share) < utility.score(now - age + 1, share)


@pytest.mark.parametrize(("oldest", "told"), [(10**6, True), (10**7, False)])
def test_ticks_are_told_up_to_some_age(oldest, told):
    utility = Utility(2**40, 0.5, 1.0 / oldest, 1.0, 0.0, 1.0)
    assert utility.tells_ticks(2**40 - 1) is told
    assert not utility.tells_ticks(2**40)


@pytest.mark.parametrize("pools", [(Pool.STATE,), tuple(Pool)])
def test_a_tie_that_only_rounding_makes_goes_to_the_lower_order(pools):
    """A dominated candidate, in another corner of a tree, with the very score of the lowest."""
    both = Both(pools)
    now = 2 * 10**10
    # Beside 0.5 of efficiency, what a tick more or less is worth at this age is rounded away.
    for id in range(FANOUT * 4):
        both.put(make(id, 10**10 - id, is_leaf=id % 2 == 0), 1.0)
    both.put(make(10**6, now - 1), 2.0)
    both.put(make(10**6 + 1, now - 1), 0.0)
    scores = utilities(
        [10**10, 10**10 - 90, now - 1, now - 1], [1.0, 1.0, 2.0, 0.0], now, eff_weight=0.5
    )
    assert scores[0] == scores[1] == 0.25
    assert both.lowest(now, 0.5, turn=pools.index(Pool.STATE)).id == 0


def test_what_is_excluded_comes_back_and_changes_meanwhile():
    both = Both()
    for id in range(5):
        both.put(make(id, id), float(id))
    assert both.lowest(9, 1.0, frozenset({0, 1})).id == 2
    both.prefixes[0].last_access = 8
    both.put(both.prefixes[0], 7.0)
    both.discard(both.prefixes[1])
    both.index._check()
    assert both.lowest(9, 1.0, frozenset({0, 1, 99})).id == 2
    assert both.lowest(9, 1.0).id == 2
    both.index._check()


@pytest.mark.parametrize("efficiency", [float("inf"), float("nan")])
def test_what_is_saved_must_be_finite(efficiency):
    candidates = Candidates((Pool.STATE,), lambda prefix: efficiency)
    with pytest.raises(ValueError, match=r"prefix 3 saves (inf|nan) FLOPs per byte"):
        candidates.put(make(3, 1))
    assert len(candidates) == 0


def test_the_tree_refuses_to_remove_what_it_does_not_hold():
    tree = StampTree()
    for stamp in range(0, 200, 2):
        tree.add((stamp, stamp), 1.0, stamp)
    for key in ((-1, 0), (3, 3), (2, 1), (400, 0)):
        with pytest.raises(KeyError):
            tree.remove(key)
    tree._check()


@given(
    st.lists(st.tuples(st.integers(0, 2**60), EFFICIENCIES), min_size=2, max_size=20),
    st.sampled_from(ALPHAS),
    st.integers(0, 2**60),
)
def test_scores_never_fall_as_last_access_or_efficiency_rises(entries, alpha, now):
    stamps, efficiencies = zip(*entries, strict=True)
    recencies = [1.0 / max(now - stamp, 1) for stamp in stamps]
    score = Utility(
        now, alpha, min(recencies), max(recencies), min(efficiencies), max(efficiencies)
    ).score
    stamps, efficiencies = sorted(stamps), sorted(efficiencies)
    assert [score(s, efficiencies[0]) for s in stamps] == sorted(
        score(s, efficiencies[0]) for s in stamps
    )
    assert [score(stamps[0], e) for e in efficiencies] == sorted(
        score(stamps[0], e) for e in efficiencies
    )


def test_a_decision_looks_at_those_that_no_other_undercuts():
    candidates = Candidates([Pool.STATE], lambda prefix: float(prefix.depth))
    assert candidates.count(Pool.STATE) == (0, 0)
    for id, depth in enumerate((50, 70, 40, 60, 40, 30)):
        prefix = make(id, last_access=id)
        prefix.depth = depth
        candidates.put(prefix)
    assert candidates.count(Pool.STATE) == (6, 3)
