"""The demo's chat of one request at a time, without a server."""

from __future__ import annotations

import statistics

import pytest
from demonstration import chat as demo_chat
from demonstration.chat import side_by_side
from demonstration.served import Served
from traces.generator.chat import (
    FIRST_PROMPT,
    LATER_PROMPT,
    REPLY,
    make_sessions,
    prompt_tokens,
    repeated_fraction,
    request_order,
    working_set,
)


def test_a_seed_makes_one_chat_and_another_seed_another():
    assert make_sessions(8, 1) == make_sessions(8, 1)
    assert make_sessions(8, 1)[:5] == make_sessions(5, 1), "more sessions keep the first ones"
    assert make_sessions(8, 1) != make_sessions(8, 2)


def test_lengths_have_the_medians_of_the_fits():
    sessions = make_sessions(600, 3, scale=1, max_history=10**6)
    firsts = [len(session.turns[0].user_tokens) for session in sessions]
    laters = [len(turn.user_tokens) for session in sessions for turn in session.turns[1:]]
    replies = [turn.reply_length for session in sessions for turn in session.turns]
    for drawn, law in ((firsts, FIRST_PROMPT), (laters, LATER_PROMPT), (replies, REPLY)):
        assert law.cdf(statistics.median(drawn)) == pytest.approx(0.5, abs=0.05)
    assert min(len(session.turns) for session in sessions) >= 3


def test_scaling_divides_and_history_is_bounded():
    scaled = make_sessions(100, 3, scale=8, max_history=500)
    assert max(session.tokens for session in scaled) <= 500
    assert working_set(scaled) < working_set(make_sessions(100, 3, scale=1, max_history=500))
    assert 0.5 < repeated_fraction(make_sessions(32, 0)) < 1


def test_requests_arrive_in_one_order_with_turns_of_a_session_in_theirs():
    sessions = make_sessions(12, 5)
    order = request_order(sessions)
    assert len(order) == sum(len(session.turns) for session in sessions)
    assert [a.seconds for a in order] == sorted(a.seconds for a in order)
    for index in range(12):
        turns = [arrival.turn for arrival in order if arrival.session == index]
        assert turns == list(range(len(sessions[index].turns)))
    assert len({a.session for a in order[:40]}) > 3, "sessions are interleaved"


def test_a_prompt_is_the_history_and_the_new_turn():
    (session,) = make_sessions(1, 7)
    first, second = (list(turn.user_tokens) for turn in session.turns[:2])
    assert prompt_tokens(session, []) == first
    assert prompt_tokens(session, [[7, 8]]) == [*first, 7, 8, *second]


def test_no_server_is_always_first():
    assert set(side_by_side(3, ["a", "b", "c"])) == {
        ("a", "b", "c"),
        ("b", "c", "a"),
        ("c", "a", "b"),
    }


def test_every_server_gets_the_same_requests_in_the_same_order(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, list[list[int]]] = {"a": [], "b": []}

    def answer(_: object, url: str, prompt: list[int], reply_length: int):
        seen[url].append(prompt)
        return Served(len(prompt), 0, reply_length, 0.1, 0.2), [len(prompt) % 250] * reply_length

    monkeypatch.setattr(demo_chat, "send", answer)
    served = demo_chat.run_chat({"a": "a", "b": "b"}, make_sessions(4, 2))
    assert seen["a"] == seen["b"]
    assert [request.prompt_tokens for request in served["a"]] == [len(p) for p in seen["a"]]
