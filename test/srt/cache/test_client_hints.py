"""What clients say reaches policy 3 through both tree cores, and is never an error of a request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH
from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.sampling.sampling_params import SamplingParams
from tree_harness import TreeHarness, sequence, server_context

SESSIONS = 4


@pytest.fixture(params=[("python", False), ("rust", False), ("python", True)])
def harness(request):
    """Four prefixes of 16 tokens, cached one after the other."""
    core, elastic = request.param
    with server_context():
        harness = TreeHarness(3, core=core, kv_tokens=400, state_slots=20, elastic=elastic)
        for first in range(SESSIONS):
            harness.insert(sequence(16, first))
        harness.cache.request_let_go()
        yield harness
        harness.check()


def ended(harness: TreeHarness, first: int, said: object = None, **changes: Any) -> Any:
    """A request that left one of the prefixes gives its memory back."""
    params = SamplingParams() if said is None else SamplingParams(custom_params={"marconi": said})
    fields = {
        "rid": "a",
        "session": None,
        "sampling_params": params,
        "finished_reason": FINISH_LENGTH(4),
        "last_node": harness.look(sequence(16, first)).best_match_node,
        **changes,
    }
    req = SimpleNamespace(**fields, finished=lambda: fields["finished_reason"] is not None)
    harness.cache.on_release(req, checkpointed=True)
    return req


def kinds(harness: TreeHarness) -> list[Hint | None]:
    cache = harness.cache
    cache.choose_victim(Pool.STATE)
    nodes = [harness.node(harness.look(sequence(16, n)).best_match_node) for n in range(SESSIONS)]
    policy = cache.policy
    return [policy.explain(cache.view.prefix(node), Pool.STATE).kind.hint for node in nodes]


def first_victim(harness: TreeHarness) -> int:
    node = harness.cache.choose_victim(Pool.STATE)
    return next(iter(harness.cache.tree.tokens_of(node.key))) // 1000


def test_what_a_client_says_reaches_the_policy(harness):
    assert first_victim(harness) == 0
    ended(harness, 2, {"last": True})
    ended(harness, 3, {"returns_in": 30})
    ended(harness, 1)
    assert kinds(harness) == [None, None, Hint.LAST, Hint.LATER]
    assert first_victim(harness) == 2
    assert harness.cache.marconi_state()["hints"] == {"last": 1, "later": 1}


def test_the_next_use_ends_it(harness):
    ended(harness, 2, {"last": True})
    assert first_victim(harness) == 2
    harness.match([*sequence(16, 2), 90])
    assert kinds(harness) == [None] * SESSIONS


def test_what_is_malformed_is_counted_and_ignored(harness):
    for said in (5, {"lost": True}, {"returns_in": "soon"}, [{}]):
        ended(harness, 2, said)
    ended(harness, 2, sampling_params=None)
    assert kinds(harness) == [None] * SESSIONS
    assert harness.cache.marconi_state()["hints"] == {"malformed": 4}


def test_an_aborted_request_says_so_and_nothing_else(harness):
    ended(harness, 1, {"last": True}, finished_reason=FINISH_ABORT())
    assert kinds(harness)[1] is Hint.ABORTED


def test_a_retracted_request_and_a_probe_say_nothing(harness):
    ended(harness, 1, {"last": True}, finished_reason=None)
    ended(harness, 2, {"last": True}, rid="HEALTH_CHECK_1")
    assert kinds(harness) == [None] * SESSIONS
    assert harness.cache.marconi_state()["hints"] == {}


def test_closing_a_session_says_that_it_is_over(harness):
    open_session = SimpleNamespace(session_id="s", streaming=False)
    ended(harness, 0, session=open_session)
    ended(harness, 1, session=open_session)
    for _ in range(2):
        harness.cache.release_session("s")
    harness.cache.release_session("unknown")
    assert kinds(harness) == [None, Hint.CLOSED, None, None]
    assert harness.cache.marconi_state()["hints"] == {"closed": 1}


def test_an_error_is_counted_and_stays_ours(harness, monkeypatch):
    def fail(id: int, hint: Hint) -> None:
        raise RuntimeError("no hint")

    monkeypatch.setattr(harness.cache.policy, "on_hint", fail)
    ended(harness, 1, {"last": True})
    assert harness.cache.marconi_state()["errors"] == 1
    harness.cache.stats.errors = 0


@pytest.mark.parametrize("policy", [1, 2])
def test_other_policies_only_count_hints(policy):
    with server_context():
        harness = TreeHarness(policy, kv_tokens=400, state_slots=20)
        harness.insert(sequence(16, 0))
        ended(harness, 0, {"last": True})
        assert harness.cache.marconi_state()["hints"] == {"last": 1}
