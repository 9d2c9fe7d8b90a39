"""What waiting requests would resume at is told to policy 3, kept for them, and is no use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.mem_cache.marconi.eviction.policy import MOST_WAITING, REFRESH_PASSES
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.plugins.marconi import calc_priority
from tree_harness import TreeHarness, sequence, server_context
from tree_harness import waiting_request as waiting

CORES = ("python", "rust")


def told(harness: TreeHarness, monkeypatch: pytest.MonkeyPatch) -> list[list[int | None]]:
    """The queues that the policy is told of, from now on."""
    queues: list[list[int | None]] = []
    original = harness.cache.policy.on_queue

    def listening(queue: Any, now: int) -> None:
        queues.append(list(queue))
        original(queue, now)

    monkeypatch.setattr(harness.cache.policy, "on_queue", listening)
    return queues


def looks(harness: TreeHarness, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of what is looked up in the tree, from now on."""
    lengths: list[int] = []
    original = harness.cache.match_prefix

    def listening(params: Any) -> Any:
        lengths.append(len(params.key))
        return original(params)

    monkeypatch.setattr(harness.cache, "match_prefix", listening)
    return lengths


def victims(harness: TreeHarness, count: int) -> list[int]:
    """First tokens of the states that are evicted next."""
    reader, gone = harness.cache.tree, []
    for _ in range(count):
        node = harness.cache.view.victim(Pool.STATE, excluding=gone)
        gone.append(node.id)
    return [next(iter(reader.tokens_of(reader.node_by_id(id).key))) for id in gone]


@pytest.fixture(params=CORES)
def harness(request):
    """Four prefixes of 16 tokens, cached one after the other."""
    with server_context():
        harness = TreeHarness(3, core=request.param, kv_tokens=400, state_slots=20)
        for first in range(4):
            harness.insert(sequence(16, first))
        harness.cache.request_let_go()
        yield harness
        harness.check()


def test_the_least_recent_stays_for_whoever_waits_for_it(harness, monkeypatch):
    oldest = victims(harness, 4)
    before = harness.cache.marconi_state()
    queue = [waiting([*sequence(16, first), 90]) for first in (0, 1)]
    queues = told(harness, monkeypatch)
    harness.cache.note_queue(queue, matched=False)
    assert len(queues) == 1 and None not in queues[0]
    assert victims(harness, 4) == [oldest[2], oldest[3], oldest[1], oldest[0]]
    # It was looked up, which is no use: no tick, and nothing is counted.
    assert harness.cache.marconi_state() == before
    harness.cache.note_queue([], matched=False)
    assert victims(harness, 1) == oldest[:1], "nobody waits any more"


def test_a_prompt_that_is_cached_whole_resumes_before_its_last_token(harness, monkeypatch):
    queues = told(harness, monkeypatch)
    harness.cache.note_queue([waiting(sequence(16, 0))], matched=False)
    assert queues == [[None]], "its own end is no use to it, and nothing lies above"


def test_requests_are_looked_up_when_they_come_and_now_and_then(harness, monkeypatch):
    lengths = looks(harness, monkeypatch)
    cached, fresh = waiting([*sequence(16, 0), 90]), waiting([70] * 20)
    harness.cache.note_queue([cached], matched=False)
    harness.cache.note_queue([cached, fresh], matched=False)
    for _ in range(REFRESH_PASSES - 2):
        harness.cache.note_queue([fresh, cached], matched=False)
    assert lengths == [16, 19], "each when it came"
    harness.cache.note_queue([fresh, cached], matched=False)
    assert lengths == [16, 19, 19, 16]
    many = [waiting([70] * 20) for _ in range(MOST_WAITING + 5)]
    harness.cache.note_queue(many, matched=False)
    assert len(lengths) == 4 + MOST_WAITING


def test_what_was_evicted_is_looked_up_again(harness, monkeypatch):
    req = waiting([*sequence(16, 0), 90])
    harness.cache.note_queue([req], matched=False)
    queues, lengths = told(harness, monkeypatch), looks(harness, monkeypatch)
    harness.cache.evict_mamba(4)
    harness.cache.note_queue([req], matched=False)
    assert lengths == [16] and queues == [[None]]
    harness.cache.note_queue([req], matched=False)
    assert lengths == [16]


def test_what_sglang_has_looked_up_is_not_looked_up_again(harness, monkeypatch):
    req = waiting([*sequence(16, 0), 90])
    req.best_match_node = harness.look(sequence(16, 2)).best_match_node
    queues, lengths = told(harness, monkeypatch), looks(harness, monkeypatch)
    harness.cache.note_queue([req], matched=True)
    assert queues == [[req.best_match_node]] and not lengths


def test_probes_and_sessions_are_left_out(harness, monkeypatch):
    probe = waiting([*sequence(16, 0), 90], rid="HEALTH_CHECK_1")
    session = waiting([*sequence(16, 1), 90])
    session.session = object()
    queues, lengths = told(harness, monkeypatch), looks(harness, monkeypatch)
    harness.cache.note_queue([probe, session], matched=False)
    assert queues == [[None, None]] and not lengths


def test_an_error_is_counted_and_stays_ours(harness, monkeypatch):
    def fail(queue: Any, now: int) -> None:
        raise RuntimeError("no queue")

    monkeypatch.setattr(harness.cache.policy, "on_queue", fail)
    harness.cache.note_queue([waiting([*sequence(16, 0), 90])], matched=False)
    assert harness.cache.marconi_state()["errors"] == 1
    harness.cache.stats.errors = 0


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("policy", [1, 2])
def test_other_policies_look_nothing_up(policy, core, monkeypatch):
    with server_context():
        harness = TreeHarness(policy, core=core, kv_tokens=400, state_slots=20)
        harness.insert(sequence(16, 0))
        lengths = looks(harness, monkeypatch)
        harness.cache.note_queue([waiting([*sequence(16, 0), 90])], matched=False)
        assert not lengths


def test_the_scheduler_hands_its_queue_on_in_the_order_of_service(monkeypatch):
    heard: list[tuple[list[Any], bool]] = []
    cache = SimpleNamespace(
        disable=False,
        supports_fast_match_prefix=lambda: False,
        note_queue=lambda queue, matched: heard.append((list(queue), matched)),
    )
    for name, matched in (("fcfs", False), ("lpm", True)):
        schedule = SchedulePolicy(name, cache, False, False, False)
        queue = [waiting([1]), waiting([2])]
        assert calc_priority(None, schedule, queue, processed_tokens=3) is None
        assert heard.pop() == (queue, matched)
    schedule.tree_cache = SimpleNamespace(disable=False)
    calc_priority(None, schedule, queue)
    assert not heard, "stock's caches are asked nothing"
