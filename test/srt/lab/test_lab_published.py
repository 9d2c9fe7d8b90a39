"""Published policies in the lab: what characterises each, on flat objects and on random trees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.cpu_cache import EXAMPLE_COST
from policies.arc import ArcPolicy
from policies.lhd import LhdPolicy
from policies.lirs import LirsPolicy
from policies.listed import ListPolicy, Objects
from policies.s3fifo import S3FifoPolicy
from policies.shared import SharedOrderPolicy
from policies.sieve import SievePolicy
from policies.two_q import TwoQPolicy
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from test_lab_policies import PREFIXES, allowed, play

MAKERS: dict[str, Callable[..., ListPolicy]] = {
    "s3fifo": S3FifoPolicy,
    "arc": ArcPolicy,
    "lirs": LirsPolicy,
    "lhd": lambda *args, **kwargs: LhdPolicy(EXAMPLE_COST, *args, **kwargs),
    "2q": TwoQPolicy,
    "sieve": SievePolicy,
}


def leaf(id: int, depth: int = 10, **fields) -> CachedPrefix:
    """A session of one turn: a state at the end of KV that nobody shares."""
    values = {"children": 0, "has_state": True, "is_leaf": True, "state_locked": False}
    values |= {"last_access": id, "reuse_from": 0, "exclusive_from": 0, "segment_from": 0}
    return CachedPrefix(id=id, order=id, depth=depth, **{**values, **fields})


class ObjectCache:
    """So many equal objects, as block caches know them: each is one prefix of its own."""

    def __init__(self, policy: EvictionPolicy, slots: int) -> None:
        self.policy, self.slots, self.now = policy, slots, 0
        self.cached: dict[str, CachedPrefix] = {}
        self._ids: dict[str, int] = {}

    def ask(self, *names: str) -> int:
        """Requests one after another; how many hit."""
        return sum(map(self._ask, names))

    def _ask(self, name: str) -> bool:
        self.now += 1
        prefix = self.cached.get(name)
        if prefix is not None:
            prefix.last_access = self.now
            self.policy.on_hit(prefix, self.now)
            self.policy.on_change(prefix)
            return True
        if name in self._ids and hasattr(self.policy, "on_return"):
            self.policy.on_return(self._ids[name], self.now)
        self.now += 1
        if len(self.cached) == self.slots:
            victim = self.policy.victim(Pool.STATE, self.now)
            assert victim is not None
            del self.cached[next(n for n, p in self.cached.items() if p is victim)]
            self.policy.on_remove(victim)
        self._ids[name] = self.now
        self.cached[name] = leaf(self.now)
        self.policy.on_insert(self.cached[name], self.now)
        return False


def names(letter: str, count: int, start: int = 0) -> list[str]:
    return [f"{letter}{i}" for i in range(start, start + count)]


# -- what each is known for


@pytest.mark.parametrize("name", ["s3fifo", "arc", "lirs", "2q", "sieve"])
def test_a_scan_does_not_wash_out_what_is_in_use(name):
    def after_scan(policy: EvictionPolicy) -> int:
        cache = ObjectCache(policy, 30)
        hot = names("h", 10)
        for step in range(30):
            cache.ask(*hot, *names("x", 8, start=8 * step))
        cache.ask(*names("scan", 60))
        return cache.ask(*hot)

    assert after_scan(SharedOrderPolicy()) == 0
    assert after_scan(MAKERS[name]()) >= {"sieve": 1}.get(name, 9)


@pytest.mark.parametrize("name", ["lirs", "s3fifo"])
def test_a_loop_wider_than_memory_keeps_a_stable_part(name):
    def hits(policy: EvictionPolicy) -> int:
        cache = ObjectCache(policy, 30)
        return cache.ask(*names("loop", 40) * 20)

    assert hits(SharedOrderPolicy()) == 0
    assert hits(MAKERS[name]()) > 200


def test_arc_moves_its_target_to_the_list_that_evicted_too_early():
    policy = ArcPolicy()
    cache = ObjectCache(policy, 10)
    cache.ask(*names("twice", 5) * 2, *names("once", 8))
    assert policy.target == 0
    missing = [name for name in names("once", 8) if name not in cache.cached]
    cache.ask(missing[-1])
    raised = policy.target
    assert raised >= 1
    assert cache.cached[missing[-1]].id in policy.again, "what came back was used again"
    for name in names("new", 12):
        cache.ask(name, name)
    gone = [name for name in names("new", 12) if name not in cache.cached]
    cache.ask(gone[-1])
    assert policy.target < raised


def test_lhd_prefers_the_class_that_is_hit_sooner():
    """Some objects are asked for again and again, the others never."""
    policy = LhdPolicy(EXAMPLE_COST)
    cache = ObjectCache(policy, 24)
    hot = names("h", 8)
    for step in range(60):
        cache.ask(*hot, *names("x", 12, start=12 * step))
    assert cache.ask(*hot) == 8
    cache.ask(*names("y", 4))
    hit_before, never_hit = cache.cached["h0"], cache.cached["y0"]
    others = {prefix.id for prefix in cache.cached.values()} - {hit_before.id, never_hit.id}
    assert hit_before.last_access < never_hit.last_access
    assert policy.victim(Pool.STATE, cache.now, others) is never_hit


def test_lhd_evicts_the_larger_of_two_alike():
    policy = LhdPolicy(EXAMPLE_COST, shared=True)
    small, large = leaf(1, depth=10, last_access=5), leaf(2, depth=500, last_access=5)
    policy.on_insert(small, 5)
    policy.on_insert(large, 5)
    assert policy.victim(Pool.STATE, 9) is large
    policy = LhdPolicy(EXAMPLE_COST)
    policy.on_insert(small, 5)
    policy.on_insert(large, 5)
    assert policy.victim(Pool.STATE, 9) is small, "states are of one size"
    assert policy.victim(Pool.KV, 9) is large


def test_2q_proves_what_comes_back_and_only_that():
    policy = TwoQPolicy()
    cache = ObjectCache(policy, 8)
    cache.ask(*names("a", 8), "a7", *names("b", 4))
    assert not len(policy.proven), "a use does not move a newcomer"
    back = next(name for name in names("a", 8)[::-1] if name not in cache.cached)
    cache.ask(back)
    assert cache.cached[back].id in policy.proven


def test_sieve_passes_over_a_mark_once():
    policy = SievePolicy()
    cache = ObjectCache(policy, 3)
    cache.ask("a", "b", "c", "a", "d")
    assert set(cache.cached) == {"a", "c", "d"}
    cache.ask("e")
    assert set(cache.cached) == {"a", "d", "e"}, "the hand went on from where it stood"
    cache.ask("d", "e", "f")
    assert set(cache.cached) == {"d", "e", "f"}, "behind the newest it begins anew"


def test_s3fifo_gives_probation_to_what_is_new_and_the_main_queue_to_what_returns():
    policy = S3FifoPolicy()
    cache = ObjectCache(policy, 10)
    cache.ask(*names("a", 10), *names("a", 5), *names("b", 6))
    assert all(name in cache.cached for name in names("a", 5)), "used on probation"
    gone = next(name for name in names("a", 10)[::-1] if name not in cache.cached)
    cache.ask(gone)
    assert cache.cached[gone].id in policy.main
    assert cache.cached["b5"].id in policy.small


# -- trees


@pytest.mark.parametrize("name", sorted(MAKERS.keys() - {"2q"}))
def test_a_line_keeps_its_history_and_leaves_its_last_turn_as_new(name):
    """A session's last turn survives a scan, though it is as new; 2Q's newcomers gain by no use."""
    survivors = {}
    for objects in Objects:
        policy = MAKERS[name](objects)
        now, session = 2, leaf(1)
        policy.on_insert(session, 1)
        cached = {1: session}
        for turn in range(40):
            now += 1
            session.last_access = now
            policy.on_hit(session, now)
            deeper = leaf(now + 1, depth=20 + turn, reuse_id=session.id, last_access=now + 1)
            policy.on_insert(deeper, now + 1)
            session.children, session.is_leaf = 1, False
            policy.on_change(session)
            cached[deeper.id], session, now = deeper, deeper, now + 1
            for _ in range(4):
                now += 1
                cached[now] = leaf(now)
                policy.on_insert(cached[now], now)
            while len(cached) > 12:
                victim = policy.victim(Pool.STATE, now)
                assert victim is not None
                del cached[victim.id]
                policy.on_remove(victim)
                if victim is session:
                    break
            if session.id not in cached:
                break
        survivors[objects] = turn
    assert survivors[Objects.LINES] == survivors[Objects.TAILS] == 39, survivors


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "insert", "hit", "change", "remove"]),
        st.integers(0, 20),
        st.tuples(PREFIXES, st.none() | st.integers(11, 40)),
    ),
    max_size=50,
)


@pytest.mark.parametrize("objects", Objects)
@pytest.mark.parametrize("name", list(MAKERS))
@settings(max_examples=60, deadline=None)
@given(
    steps=STEPS,
    shared=st.booleans(),
    pool=st.sampled_from(Pool),
    excluding=st.sets(st.integers(11, 40), max_size=5),
)
def test_there_is_a_victim_where_one_is_allowed(name, objects, steps, shared, pool, excluding):
    """Evicting whom it names, one after another, empties the pool and nothing else is named."""
    policy = MAKERS[name](objects, shared=shared)
    cached: dict[int, CachedPrefix] = {}
    drawn = []
    for id, (event, pick, (prefix, above)) in enumerate(steps, 11):
        prefix.reuse_id = above if event == "insert" and above is not None and above < id else None
        drawn.append((event, pick, prefix))
    now = play(policy, drawn, cached)
    want = None if shared else pool
    while True:
        candidates = allowed(cached, want, excluding)
        victim = policy.victim(pool, now, excluding)
        if not candidates:
            assert victim is None
            return
        assert victim in candidates
        stateless = [p for p in candidates if not p.has_state]
        assert not stateless or not victim.has_state, "nothing resumes from it"
        left = [p for p in candidates if p.children == 1] if not stateless else []
        assert objects is not Objects.TAILS or not left or victim in left
        del cached[victim.id]
        policy.on_remove(victim)
        policy.on_return(victim.id, now)
