"""Replaying traces: what is sent, in which order, and what is reported of it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from demonstration.served import Run, Served
from hypothesis import given
from hypothesis import strategies as st
from live import bench_seed, replay
from live.client import Answer
from live.history import Conversation, TokenSource
from live.rows import counted_between, mean_rows, request_row, summary, table
from live.run import Pace, Sent
from live.schedule import Backlog, due_times
from live.servers import free_port
from live.workload import Selection, Turn, scaled
from traces import Request

SOURCE = TokenSource(block=4, vocab_size=50)


def turn(index: int, session: str, at_ms: float = 0.0, **changes: object) -> Turn:
    request = Request(at_ms, session, 8, 4, (1, 2), (3,))
    return Turn(index, session, replace(request, **changes))  # type: ignore[arg-type]


# -- prompts


@given(st.data())
def test_prompts_repeat_what_was_really_said_and_follow_the_trace_elsewhere(data):
    """Against a twin that carries, for every token of the trace, what was really said for it."""
    conversation = Conversation("s", SOURCE)
    ids: list[int] = []
    length = 0
    said: list[tuple[int, ...]] = []  # For each position of the trace's history.
    fresh = iter(range(100, 10**6))
    for _ in range(data.draw(st.integers(1, 6))):
        keep = data.draw(st.one_of(st.just(length), st.integers(0, length)))
        if keep // 4 < len(ids):
            # A prompt that leaves the history: a trace of blocks tells where to a full block.
            keep = keep // 4 * 4
            ids, said, length = ids[: keep // 4], said[:keep], keep
        grown = data.draw(st.integers(0 if length else 1, 9))
        length += grown
        ids = ids + [next(fresh) for _ in range(length // 4 - len(ids))]
        prompt_ids, input_length = tuple(ids), length
        output_length = data.draw(st.integers(1, 6))
        length += output_length
        ids = ids + [next(fresh) for _ in range(length // 4 - len(ids))]
        request = Request(
            0.0, "s", input_length, output_length, prompt_ids, tuple(ids[len(prompt_ids) :])
        )
        prompt = conversation.prompt(request)
        own = SOURCE.prompt("s", request, len(said), input_length)
        said += [(token,) for token in own]
        assert prompt == [token for tokens in said for token in tokens]
        reply = [60 + n for n in range(data.draw(st.integers(1, 9)))]
        conversation.answered(request, prompt, reply)
        # A reply of another length than the trace's: its last token stands for the rest.
        parts = [tuple(reply[n : n + 1]) for n in range(output_length)]
        parts[-1] += tuple(reply[output_length:])
        said += parts


def test_exact_tokens_of_a_trace_are_used_and_compared():
    conversation = Conversation("s", SOURCE)
    first = Request(0.0, "s", 3, 2, (), (), (7, 8, 9), (1, 2))
    assert conversation.prompt(first) == [7, 8, 9]
    conversation.answered(first, [7, 8, 9], [40, 41, 42])
    grown = Request(1.0, "s", 6, 1, (), (), (7, 8, 9, 1, 2, 5), (0,))
    assert conversation.prompt(grown) == [7, 8, 9, 40, 41, 42, 5]
    edited = Request(1.0, "s", 5, 1, (), (), (7, 8, 6, 1, 2), (0,))
    assert conversation.prompt(edited) == [7, 8, 6, 1, 2]


def test_sessions_share_full_blocks_and_not_what_lies_behind_them():
    request = Request(0.0, "a", 10, 1, (1, 2), ())
    one, other = (Conversation(name, SOURCE).prompt(request) for name in "ab")
    assert one[:8] == other[:8] and one[8:] != other[8:] and len(one) == 10


@given(st.integers(1, 400), st.integers(0, 200), st.sampled_from([1, 2, 4, 16, 64]))
def test_scaling_keeps_whole_blocks_whole(length, output, divisor):
    total = (length + output) // 64
    request = Request(
        0.0, "s", length, output, tuple(range(length // 64)), tuple(range(length // 64, total))
    )
    small = scaled(request, divisor)
    block = Selection(divisor=divisor).scaled_block
    assert small.input_length >= 1 and small.output_length >= 0
    if length >= divisor:
        assert small.input_length // block == len(small.prompt_ids)
    assert (small.input_length + small.output_length) // block >= total


def test_selection_names_the_flag_that_does_not_fit():
    with pytest.raises(ValueError, match="--scale-lengths is 3"):
        _ = Selection(divisor=3).scaled_block


def test_selection_ends_long_sessions_and_takes_the_first_ones():
    lengths = [("a", 5), ("b", 5), ("a", 50), ("c", 5), ("b", 6), ("a", 7), (None, 5)]
    trace = [Request(0.0, session, length, 1, (), ()) for session, length in lengths]
    chosen = Selection(sessions=2, max_input_tokens=20).turns(trace)
    assert [(t.session, t.request.input_length) for t in chosen] == [("a", 5), ("b", 5), ("b", 6)]
    assert [t.index for t in Selection(limit=4).turns(trace)] == [0, 1, 2, 3]


# -- order


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), max_size=12),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_turns_go_out_when_due_in_order_and_sessions_one_after_another(plan, limit, rng):
    """Against the definition, on a clock of the test's own."""
    times = sorted(at for _, at in plan)
    turns = [turn(i, s, 1000.0 * t) for i, ((s, _), t) in enumerate(zip(plan, times, strict=True))]
    due = [1.0 * t for t in times]
    backlog, running, gone, answered, now = Backlog(turns, due), [], [], set(), 0.0
    while len(answered) < len(turns):
        while len(running) < limit and (taken := backlog.take(now)) is not None:
            running.append(taken)
            gone.append(taken.index)
        ready = [
            t.index
            for t in turns
            if t.index not in gone
            and due[t.index] <= now
            and all(
                other.index in answered
                for other in turns
                if other.session == t.session and other.index < t.index
            )
        ]
        assert not ready or len(running) == limit
        assert len(backlog) == len(turns) - len(gone)
        if running:
            over = running.pop(rng.randrange(len(running)))
            answered.add(over.index)
            backlog.answered(over)
        else:
            wait = backlog.next_due()
            assert wait is not None and wait > now
            now = wait
    for session in "abc":
        own = [index for index in gone if turns[index].session == session]
        assert own == sorted(own)
    assert backlog.take(1e9) is None and len(backlog) == 0


def test_one_at_a_time_is_the_order_of_the_trace():
    turns = [turn(i, random.Random(i).choice("ab"), 1000.0 * i) for i in range(20)]
    backlog, order = Backlog(turns, due_times(turns, None)), []
    while (taken := backlog.take(0.0)) is not None:
        order.append(taken.index)
        backlog.answered(taken)
    assert order == list(range(20))


def test_arrivals_are_scaled_from_the_first():
    turns = [turn(0, "a", 5000.0), turn(1, "b", 6000.0), turn(2, "a", 9000.0)]
    assert due_times(turns, 2.0) == [0.0, 0.5, 2.0]
    assert due_times([], 2.0) == []


def test_servers_take_turns_at_going_first():
    targets = [replay.Target(name, name, ()) for name in "abc"]
    order = ["".join(t.label for t in replay.rotated(targets, run)) for run in range(4)]
    assert order == ["abc", "bca", "cab", "abc"]


# -- reports


def sent(index: int, cached: int | None, *, ttft: float = 0.01, error: str | None = None) -> Sent:
    answer = None
    if error is None:
        answer = Answer((5, 6, 7), 10, cached, ttft, (0.02, 0.04), 0.07)
    return Sent(turn(index, "s"), tuple(range(10)), 0.0, index * 1.0, index + 1.0, answer, error)


def test_a_summary_counts_errors_apart():
    result = summary([sent(0, 0), sent(1, 8, ttft=0.03), sent(2, None, error="HTTP 500")])
    assert (result["requests"], result["answered"], result["failed"]) == (3, 2, 1)
    assert result["errors"] == {"HTTP 500": 1}
    assert (result["token_hit_rate"], result["request_hit_rate"]) == (8 / 20, 0.5)
    assert result["ttft_ms"]["mean"] == pytest.approx(20)
    assert result["itl_ms"]["mean"] == pytest.approx(30)
    assert result["seconds"] == 3.0 and result["output_tokens_per_s"] == 2.0
    json.dumps(result)


def test_what_a_server_does_not_tell_is_none():
    untold = summary([sent(0, None), sent(1, 3)])
    assert untold["token_hit_rate"] is None and untold["cached_tokens"] is None
    nothing = summary([sent(0, None, error="x")])
    assert nothing["ttft_ms"]["p99"] is None and nothing["token_hit_rate"] is None
    assert request_row(sent(0, None, error="x"))["error"] == "x"


def test_counters_are_subtracted_and_replicas_added():
    def reading(n: int) -> dict[str, object]:
        return {
            **{"requests": n, "states_evicted": 2 * n, "policy": "marconi", "clock": 9},
            **{"token_hit_rate": 0.1, "victims": {"kv:leaf_kv_only": n}},
        }

    counted = counted_between([reading(1), reading(2)], [reading(5), reading(3)])
    assert counted == {
        **{"requests": 5, "states_evicted": 10, "policy": "marconi", "clock": 9},
        "victims": {"kv:leaf_kv_only": 5},
    }
    assert counted_between([], []) is None


def test_the_table_has_ratios_to_the_first_server_and_skips_what_nobody_tells():
    rows = [
        {"server": "a", **summary([sent(0, 4)]), "marconi": None},
        {"server": "b", **summary([sent(0, 6, ttft=0.02)]), "marconi": {"states_evicted": 3}},
        {"server": "b", **summary([sent(0, 6, ttft=0.04)]), "marconi": {"states_evicted": 5}},
    ]
    text = table(mean_rows(rows))
    lines = {line.split("|")[1].strip(): line for line in text.splitlines()}
    assert "60.0 (x 1.50)" in lines["token hit rate, %"]
    assert "30.0 (x 3.00)" in lines["TTFT mean, ms"]
    assert "4" in lines["states evicted (Marconi's count)"]
    assert "tokens lost: KV evicted" not in lines
    assert len({len(line) for line in text.splitlines()}) == 1


# -- command lines


@pytest.fixture()
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    record = {"timestamp": 0, "session_id": "a", "input_length": 9, "output_length": 2}
    path.write_text(json.dumps({**record, "hash_ids": []}) + "\n")
    return path


def test_an_unreachable_server_is_named(trace, capsys):
    url = f"http://127.0.0.1:{free_port()}"
    assert replay.main(["--trace", str(trace), "--url", url]) == 1
    assert f"--url is '{url}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --url, or --launch"),
        (("--launch", "--tp 1"), "--launch needs --model"),
        (("--url", "u", "--label", "a", "--label", "b"), "--label must be given as often"),
        (("--url", "u", "--speed", "0"), "--speed is 0.0; it must be above 0"),
    ],
)
def test_bad_flags_are_named(trace, capsys, arguments, message):
    with pytest.raises(SystemExit):
        replay.main(["--trace", str(trace), *arguments])
    assert message in capsys.readouterr().err


def test_a_warm_up_that_leaves_nothing_is_refused(trace, capsys):
    arguments = ["--trace", str(trace), "--url", "http://127.0.0.1:9", "--warm-up", "1"]
    assert replay.main(arguments) == 1
    assert "--warm-up is 1" in capsys.readouterr().err


def test_paces_read_well():
    assert str(Pace(None, 2)) == "closed loop, 2 at a time"
    assert str(Pace(10.0, None)) == "open loop, speed 10"


def test_the_seed_benchmark_tells_three_servers_apart_and_passes_flags_on():
    options = bench_seed.parse_arguments(
        ["--model", "m", "--out", "o", "--tp", "4", "--", "--mem-fraction-static", "0.8"]
    )
    assert bench_seed.common_flags(options) == ("--tp", "4", "--mem-fraction-static", "0.8")
    assert options.groups == 64
    flags = bench_seed.server_flags(0.5)
    assert flags["no radix cache"] == ("--disable-radix-cache",) and flags["LRU"] == ()
    assert flags["Marconi"] == ("--marconi-evict-policy", "2", "--marconi-eff-weight", "0.5")
    small = bench_seed.parse_arguments(["--small", "--model", "m", "--out", "o"])
    assert small.groups == 8 and "--max-total-tokens" in bench_seed.common_flags(small)


def test_figures_of_a_benchmark_run():
    served = [Served(100, 0, 4, 0.1, 0.2), Served(100, 50, 4, 0.3, 0.4)]
    row = bench_seed.figures(Run(served, 2.0))
    assert (row["token_hit_rate"], row["request_hit_rate"]) == (0.25, 0.5)
    assert row["input_tokens_per_s"] == 100 and row["ttft_ms"]["mean"] == pytest.approx(200)
