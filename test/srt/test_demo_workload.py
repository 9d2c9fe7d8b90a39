"""The demo's workload and its report, without a server."""

from __future__ import annotations

import statistics
from pathlib import Path

import demo_chat
import pytest
from chat_workload import (
    FIRST_PROMPT,
    LATER_PROMPT,
    REPLY,
    make_sessions,
    prompt_tokens,
    repeated_fraction,
    request_order,
    working_set,
)
from demo import find_model, make_plan, parse_arguments, server_flags, there_and_back
from demo_chat import Served, side_by_side
from demo_measures import (
    difference_of_runs,
    measure,
    paired_difference,
    quantile,
    victims_since,
)
from demo_report import LRU, MARCONI, WITNESS, Comparison, table, verdict, witness_note
from demo_shared_prefix import parse_run


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
    assert list(there_and_back(["a", "b"], 2)) == ["a", "b", "b", "a"]


def test_every_server_gets_the_same_requests_in_the_same_order(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, list[list[int]]] = {"a": [], "b": []}

    def answer(_: object, url: str, prompt: list[int], reply_length: int):
        seen[url].append(prompt)
        return Served(len(prompt), 0, reply_length, 0.1, 0.2), [len(prompt) % 250] * reply_length

    monkeypatch.setattr(demo_chat, "send", answer)
    served = demo_chat.run_chat({"a": "a", "b": "b"}, make_sessions(4, 2))
    assert seen["a"] == seen["b"]
    assert [request.prompt_tokens for request in served["a"]] == [len(p) for p in seen["a"]]


def test_servers_differ_in_marconis_flags_alone():
    plan = make_plan(parse_arguments(["--models", "m", "--out", "o", "--eff-weight", "0.3"]))
    flags = server_flags(plan)
    stock = flags[LRU]
    assert not any("marconi" in flag for flag in stock)
    assert flags[WITNESS] == (*stock, "--marconi-evict-policy", "1")
    weighted = ("--marconi-evict-policy", "2", "--marconi-eff-weight", "0.3")
    assert flags[MARCONI] == (*stock, *weighted)


def comparison(marconi_hit: int, marconi_ms: float) -> Comparison:
    def one(cached: int, ms: float, evictions: dict[str, int] | None):
        served = [Served(100, cached, 5, ms / 1000 + i * 1e-5, 0.1) for i in range(50)]
        return served, measure(served, 5.0, float, evictions)

    kinds = {"state:state_only": 3}
    runs = {
        LRU: one(50, 20.0, None),
        WITNESS: one(50, 21.0, kinds),
        MARCONI: one(marconi_hit, marconi_ms, {"kv:leaf_with_state": 2}),
    }
    ttfts = {name: [1000 * r.ttft for r in served] for name, (served, _) in runs.items()}
    measures = {name: measured for name, (_, measured) in runs.items()}
    return Comparison("Chat", measures, paired_difference(ttfts[MARCONI], ttfts[LRU]))


def test_the_verdict_says_who_wins_and_who_loses():
    won = verdict(comparison(60, 15.0))
    assert "WINS on token hit rate, 60.0 % against 50.0 % (+10.0 points)" in won
    assert "WINS on mean TTFT, by 5.0 ms" in won
    lost = verdict(comparison(40, 30.0))
    assert "LOSES on token hit rate" in lost and "LOSES on mean TTFT, by 10.0 ms" in lost
    even = verdict(comparison(50, 20.0))
    assert "hit the same share" in even and "no clear difference" in even


def test_the_table_shows_every_figure_and_who_counts_evictions():
    text = table(comparison(60, 15.0))
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
    assert "not counted" in text and "x 0.75" in text and "+10.0 points" in text
    for label in ("TTFT P99", "input throughput", "states short", "KV short"):
        assert label in text
    assert "exactly what stock LRU hit" in witness_note(comparison(60, 15.0))


def test_measures_by_hand():
    served = [Served(100, 40, 10, 0.010, 0.1), Served(300, 0, 10, 0.030, 0.1)]
    result = measure(served, 2.0, lambda tokens: tokens**2, None)
    assert result.token_hit_rate == 0.1 and result.flops_saved_fraction == 1600 / 100_000
    assert result.ttft_mean == pytest.approx(20) and result.ttft_p50 == pytest.approx(20)
    assert result.input_throughput == 200 and result.output_throughput == 10
    assert quantile([1.0, 2.0, 4.0], 0.75) == 3.0
    assert victims_since({"victims": {"a": 1}}, {"victims": {"a": 3, "b": 1}}) == {"a": 2, "b": 1}
    assert victims_since(None, None) is None


def test_runs_made_one_after_the_other_settle_nothing_unless_all_pairs_agree():
    assert not difference_of_runs([1.0], [9.0]).clear, "one run each: the machine may have changed"
    assert not difference_of_runs([1.0, 5.0], [4.0, 6.0]).clear
    apart = difference_of_runs([1.0, 2.0], [4.0, 6.0])
    assert (apart.clear, apart.low, apart.high, apart.mean) == (True, -5.0, -2.0, -3.5)


def test_reads_bench_serving_and_leaves_out_failed_requests():
    result = {
        "input_lens": [10, 20],
        "cached_tokens": [0, 8],
        "ttfts": [0.5, 0.0],
        "itls": [[0.125, 0.125], []],
        "errors": ["", "refused"],
        "duration": 3.0,
    }
    run = parse_run(result, output_length=3)
    assert run.served == [Served(10, 0, 3, 0.5, 0.75)] and run.seconds == 3.0


def test_a_missing_model_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="tiny_models"):
        find_model(tmp_path)
