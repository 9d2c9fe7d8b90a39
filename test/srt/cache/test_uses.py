"""A use is a request that is admitted: looks of waiting requests neither tick nor count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import ReqKvInfo
from sglang.srt.mem_cache.marconi.eviction.value.policy import ValuePolicy
from tree_harness import TreeHarness, radix_key, sequence, server_context

CORES = ("python", "rust")


def waiting(tokens: list[int], rid: str = "a") -> Any:
    """What a lookup reads and writes of a request."""
    return SimpleNamespace(
        rid=rid, session=None, kv=ReqKvInfo(), origin_input_ids=tokens, lock=None, extra_key=None
    )


def told(harness: TreeHarness, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Uses and returns that the policy is told of, from now on."""
    heard: list[tuple[str, int]] = []
    policy = harness.cache.policy
    for name in ("on_hit", "on_return"):
        original = getattr(policy, name)

        def listening(what: Any, now: int, *, name: str = name, original: Any = original) -> None:
            heard.append((name, what if isinstance(what, int) else what.id))
            original(what, now)

        monkeypatch.setattr(policy, name, listening)
    return heard


@pytest.mark.parametrize("core", CORES)
def test_looks_change_nothing_that_a_policy_or_a_counter_sees(
    core: str, monkeypatch: pytest.MonkeyPatch
):
    with server_context():
        harness = TreeHarness(3, core=core, kv_tokens=400, state_slots=20)
        for first in range(4):
            harness.insert(sequence(16, first))
        harness.cache.request_let_go()
        heard, before = told(harness, monkeypatch), harness.cache.marconi_state()
        req = waiting(sequence(24, 1))
        for _ in range(10):
            harness.look(sequence(24, 1), req=req)
            harness.cache.touch_prefix(radix_key(sequence(16, 2)))
        # A look splits the path where it leaves it, as in stock.
        for state in (before, after := harness.cache.marconi_state()):
            state.pop("cached_prefixes")
        assert after == before and not heard
        harness.check()


@pytest.mark.parametrize("core", CORES)
def test_a_request_uses_what_it_resumes_at_once_however_it_is_chunked_or_retracted(
    core: str, monkeypatch: pytest.MonkeyPatch
):
    with server_context():
        harness = TreeHarness(3, core=core, kv_tokens=400, state_slots=20)
        for first in range(4):
            harness.insert(sequence(16, first))
        harness.cache.request_let_go()
        heard, now = told(harness, monkeypatch), harness.cache.view.now
        req = waiting(sequence(24, 1))
        found = harness.look(req.origin_input_ids, req=req)
        req.lock = harness.cache.lock(found.last_device_node)
        for _ in range(3):
            harness.cache.maybe_hand_to_session(req)
        assert heard == [("on_hit", found.best_match_node)]
        assert harness.cache.view.now == now + 1
        # It was retracted: its next turn is the same request's.
        harness.cache.unlock(req.lock)
        found = harness.look(req.origin_input_ids, req=req)
        req.lock = harness.cache.lock(found.last_device_node)
        harness.cache.maybe_hand_to_session(req)
        assert len(heard) == 1 and harness.cache.view.now == now + 1
        harness.cache.unlock(req.lock)


@pytest.mark.parametrize("core", CORES)
def test_a_health_check_and_a_sessions_later_turn_use_nothing(
    core: str, monkeypatch: pytest.MonkeyPatch
):
    with server_context():
        harness = TreeHarness(3, core=core, kv_tokens=400, state_slots=20)
        harness.insert(sequence(16, 1))
        harness.cache.request_let_go()
        heard, now = told(harness, monkeypatch), harness.cache.view.now
        probe = waiting(sequence(24, 1), rid="HEALTH_CHECK_0")
        probe.lock = harness.cache.lock(harness.look(sequence(24, 1)).last_device_node)
        harness.cache.maybe_hand_to_session(probe)
        harness.cache.unlock(probe.lock)
        # What a session holds is no node of the tree: its later turns come without a lock.
        harness.cache.maybe_hand_to_session(waiting(sequence(24, 1)))
        assert not heard and harness.cache.view.now == now


@pytest.mark.parametrize("core", CORES)
def test_a_request_whose_name_is_no_text_is_served_as_any(
    core: str, monkeypatch: pytest.MonkeyPatch
):
    with server_context():
        harness = TreeHarness(3, core=core, kv_tokens=400, state_slots=20)
        harness.insert(sequence(16, 1))
        harness.cache.request_let_go()
        heard = told(harness, monkeypatch)
        req = waiting(sequence(24, 1), rid=0)
        found = harness.look(req.origin_input_ids, req=req)
        req.lock = harness.cache.lock(found.last_device_node)
        harness.cache.maybe_hand_to_session(req)
        assert heard == [("on_hit", found.best_match_node)]
        assert harness.cache.stats.errors == 0
        harness.cache.unlock(req.lock)


@pytest.mark.parametrize("core", CORES)
def test_a_return_is_told_when_the_request_is_admitted_and_once(
    core: str, monkeypatch: pytest.MonkeyPatch
):
    with server_context():
        harness = TreeHarness(3, core=core, kv_tokens=400, state_slots=4)
        assert isinstance(harness.cache.policy, ValuePolicy)
        harness.insert(sequence(16, 1))
        lost = harness.look(sequence(16, 1)).best_match_node
        harness.cache.evict_mamba(1)
        heard = told(harness, monkeypatch)
        req = waiting(sequence(24, 1))
        for _ in range(5):
            found = harness.look(req.origin_input_ids, req=req)
        assert not heard
        req.lock = harness.cache.lock(found.last_device_node)
        for _ in range(2):
            harness.cache.maybe_hand_to_session(req)
        assert heard == [("on_return", lost)]
        harness.cache.unlock(req.lock)


@pytest.mark.parametrize("core", CORES)
def test_the_policy_hears_which_evicted_state_is_remembered_no_longer(
    core: str, monkeypatch: pytest.MonkeyPatch
):
    with server_context():
        harness = TreeHarness(3, core=core, kv_tokens=400, state_slots=3)
        policy, forgotten = harness.cache.policy, []
        assert isinstance(policy, ValuePolicy)
        monkeypatch.setattr(policy, "on_forgotten", forgotten.append)
        monkeypatch.setattr(harness.cache._lookups._ghosts, "_max_blocks", 2)
        for first in range(8):
            harness.insert(sequence(64, first * 1000))
            # A look remembers what was evicted before.
            harness.look(sequence(64, 10**6 + first), req=waiting(sequence(64, 10**6 + first)))
        assert len(forgotten) == len(set(forgotten)) >= 2
        harness.check()
