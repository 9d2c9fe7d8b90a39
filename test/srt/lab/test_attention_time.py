"""FLOPs of attention may take another time than others: what is saved, waited for, weighed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab import command as simulate
from lab.costs import in_time, load_cost
from sglang.srt.mem_cache.marconi.costs.layers import ScoreTerm
from test_simulate import chat_trace

MODEL = "Qwen3-Next-80B-A3B-Instruct"
LOADED = ("--engine", "shadow", "--running", "1", "--decode-ms-per-token", "0")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "chat.jsonl"
    records = chat_trace(2)
    for record in records:
        # So far apart that nobody waits.
        record["timestamp"] = 1e6 * int(str(record["timestamp"]))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def rows(capsys: pytest.CaptureFixture[str], trace: Path, *options: str) -> list[dict]:
    command = ["--trace", str(trace), "--model", MODEL, "--kv-tokens", "20000", *options]
    assert simulate.main([*command, "--state-slots", "16"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_attention_alone_takes_another_time():
    cost = load_cost(MODEL)
    assert in_time(cost, 1) == cost
    slower = in_time(cost, 3)
    for tokens in (1, 1000, 100_000):
        assert slower.flops(tokens) - cost.flops(tokens) == 2 * cost.b * tokens**2
    windowed = in_time(
        type(cost)(a=5, b=0, kv_bytes_per_token=1, state_bytes=1, windows=(ScoreTerm(8, 4),)), 0.5
    )
    assert windowed.windows == (ScoreTerm(4, 4),)


def test_what_is_saved_and_who_waits_go_by_the_time(trace, capsys):
    (alike,) = rows(capsys, trace, *LOADED, "--policy", "server:3")
    (fast,) = rows(capsys, trace, *LOADED, "--policy", "server:3", "--attention-time", "0.25")
    assert fast["flops_saved"] == alike["flops_saved"] == alike["seconds_saved"]
    # Long prompts and short ones hit different shares, and weigh otherwise where it is fast.
    assert fast["seconds_saved"] != fast["flops_saved"]
    cost, service = load_cost(MODEL), 4e14
    for row, model in ((alike, cost), (fast, in_time(cost, 0.25))):
        saved = model.a * row["input_tokens"] * (1 - row["token_hit_rate"]) / service
        mean = row["ttft_ms_modelled"]["mean"] * row["requests"] / 1000
        assert saved < mean < 1.2 * saved, "of linear layers at least, and not much more"
    assert fast["ttft_ms_modelled"]["mean"] < alike["ttft_ms_modelled"]["mean"]


def test_seconds_are_weighed_where_that_is_asked(trace, capsys):
    policies = ("--policy", "value,value:seconds")
    alike = rows(capsys, trace, *LOADED, *policies)
    assert alike[0]["token_hit_rate"] == alike[1]["token_hit_rate"]
    apart = rows(capsys, trace, *LOADED, *policies, "--attention-time", "50")
    assert apart[0]["token_hit_rate"] == alike[0]["token_hit_rate"]
    assert apart[0]["token_hit_rate"] != apart[1]["token_hit_rate"]


def test_a_wrong_time_is_named(trace):
    with pytest.raises(SystemExit, match="--attention-time is 0"):
        simulate.main(
            ["--trace", str(trace), "--model", MODEL, "--policy", "lru", "--attention-time", "0"]
        )
