"""Who is passed over is asked one by one: the victims are those of a scan, and few are asked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from sglang.srt.mem_cache.mamba_radix.python_core import walk as walk_module
from sglang.srt.mem_cache.mamba_radix.python_core.walk import PolicyWalk
from sglang.srt.mem_cache.marconi.eviction.marconi import MarconiPolicy
from sglang.srt.mem_cache.marconi.eviction.policy import orders_shared_memory
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from speed.scanned_candidates import ScannedCandidates
from test_stateful_cache import SHARED, TOKENS, CacheLife
from tree_harness import FULL, MAMBA, TreeHarness, live, sequence, server_context

SESSIONS = st.sampled_from("abcd")


def scanned_victim(harness: TreeHarness, pool: Pool | None, passed: set[int]) -> int | None:
    """Id of the victim where all that is to be passed over is looked for beforehand."""
    view, policy = harness.cache.view, harness.cache.policy
    view.refresh()
    if isinstance(policy, MarconiPolicy):
        scan = ScannedCandidates(pool, policy._candidates._efficiency)
        for prefix in view._prefixes():
            scan.put(prefix)
        found = scan.lowest(pool, view.now, policy.eff_weight, passed)
    else:
        stay = {prefix.id for prefix in view._prefixes() if not prefix.may_leave(pool)}
        found = policy.victim(pool or Pool.STATE, view.now, stay | passed)
    return None if found is None else found.id


def session_walk(harness: TreeHarness, pool: Pool | None) -> PolicyWalk:
    cache = harness.cache
    if pool is None:
        in_session = walk_module._session_test_of_both(cache)
        return PolicyWalk(cache, Pool.STATE, in_session, shared=True)
    component = cache.components[FULL if pool is Pool.KV else MAMBA]
    return PolicyWalk(cache, pool, walk_module.session_test(component))


def register(harness: TreeHarness, session: str, tokens: list[int]) -> None:
    """A request of this session ended there."""
    refs = harness.cache.session_refs
    generation = refs.ensure_session_generation(session)
    request = SimpleNamespace(session=None, session_id=session, session_generation=generation)
    refs.register_session_ref(request, harness.look(tokens).best_match_node)


class PassingLife(CacheLife):
    """Before each victim that could be asked for, a scan says which it would be."""

    @rule(session=SESSIONS, tokens=TOKENS)
    def request_of_a_session(self, session: str, tokens: list[int]) -> None:
        if self.harness.sessions and self.harness.insert(tokens):
            register(self.harness, session, tokens)

    @rule(session=SESSIONS)
    def session_ends(self, session: str) -> None:
        if self.harness.sessions:
            self.harness.cache.session_refs.release_radix_session(session)
            self.harness.cache.session_refs.open_radix_session(session)

    @invariant()
    def one_pool_alone_gives_what_a_scan_would(self) -> None:
        harness = self.harness
        if orders_shared_memory(harness.cache.policy):
            for pool in Pool:
                victim = harness.cache.view.victim(pool)
                id = None if victim is None else victim.id
                assert id == scanned_victim(harness, pool, set())

    @invariant()
    def sessions_are_spared_as_after_a_scan(self) -> None:
        harness = self.harness
        if not harness.sessions:
            return
        shared = orders_shared_memory(harness.cache.policy)
        for pool in (None,) if shared else Pool:
            walk, passed = session_walk(harness, pool), set()
            harness.cache.view.refresh()
            in_session = {
                prefix.id
                for prefix in harness.cache.view._prefixes()
                if walk._in_session(harness.cache.tree.node_by_id(prefix.id))
            }
            for _ in range(4):
                expected = scanned_victim(harness, pool, passed | in_session)
                if expected is None:
                    expected = scanned_victim(harness, pool, passed)
                victim = walk.next()
                assert (None if victim is None else victim.id) == expected
                if victim is None:
                    break
                passed.add(victim.id)


VARIANTS = {
    "marconi_shared": (2, SHARED),
    "value_shared_rust": (3, {"core": "rust", **SHARED}),
    "marconi_sessions": (2, {"sessions": True}),
    "value_sessions": (3, {"sessions": True}),
    "value_shared_sessions": (3, {"sessions": True, **SHARED}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_victims_are_those_of_a_scan(variant: str) -> None:
    policy, options = VARIANTS[variant]
    live(type("Life", (PassingLife,), {"policy": policy, "options": options}), examples=25)


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """Ids of nodes of which a walk asked whether a session holds them."""
    found: list[int] = []
    test_of = walk_module.session_test

    def counted(component):
        in_session = test_of(component)
        return lambda node: found.append(node.id) or in_session(node)

    monkeypatch.setattr(walk_module, "session_test", counted)
    return found


@pytest.mark.parametrize("policy", [2, 3])
def test_few_are_asked_whether_a_session_holds_them(policy, asked):
    with server_context():
        harness = TreeHarness(policy, kv_tokens=4096, state_slots=256, sessions=True)
        for which in range(200):
            harness.insert(sequence(8, which))
        held = [sequence(8, which) for which in range(5)]
        for tokens in held:
            register(harness, "a", tokens)
        victims = 0
        while victims < 20:
            walk = session_walk(harness, Pool.STATE)
            assert walk.next() is not None
            victims += harness.cache.evict_mamba(1).mamba_num_evicted
        assert all(harness.hit(tokens) == 8 for tokens in held)
    assert len(asked) < victims * 2 * 12, "an earlier walk asked of each of 200"


@pytest.mark.parametrize("policy", [2, 3])
def test_a_pool_alone_is_served_without_a_look_at_all(policy, monkeypatch):
    with server_context():
        harness = TreeHarness(policy, kv_tokens=4096, state_slots=256, elastic=True)
        for which in range(200):
            harness.insert(sequence(8, which))
        harness.cache.view.refresh()
        asked: list[int] = []
        may_leave = CachedPrefix.may_leave

        def counted(prefix: CachedPrefix, pool: Pool | None) -> bool:
            asked.append(prefix.id)
            return may_leave(prefix, pool)

        monkeypatch.setattr(CachedPrefix, "may_leave", counted)
        assert harness.cache.view.victim(Pool.KV) is not None
    assert len(asked) < 12
