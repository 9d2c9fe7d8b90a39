"""The live comparison without its servers: slice, memory, contenders, rows kept, the table."""

from __future__ import annotations

import json

import pytest
from live import comparison as live_comparison
from live import replay
from sglang.srt.mem_cache.marconi.costs.known_models import KNOWN_MODELS
from traces import read_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Twenty sessions that take turns, each sending back its history."""
    path = tmp_path_factory.mktemp("comparison") / "sessions.jsonl"
    with path.open("w") as file:
        for turn in range(6):
            for session in range(20):
                ids = [session * 1000 + i for i in range(20 + 8 * turn)]
                record = {
                    "timestamp": (turn * 20 + session) * 100,
                    "session_id": str(session),
                    "input_length": 64 * len(ids),
                    "output_length": 128,
                    "hash_ids": ids,
                    "output_hash_ids": [ids[-1] + 1, ids[-1] + 2],
                }
                file.write(json.dumps(record) + "\n")
    return path


@pytest.fixture(scope="module")
def options(trace):
    """A comparison on a model that is large, so that its memory is a handful of states."""
    model = trace.parent / "model"
    model.mkdir()
    config = next(c for name, c in KNOWN_MODELS.items() if "Qwen3-Next-80B" in name)
    (model / "config.json").write_text(json.dumps(config))
    return live_comparison.parse_arguments(
        [
            *("--trace", str(trace), "--model", str(model), "--out", str(trace.parent / "rows")),
            *("--limit", "100", "--scale-lengths", "2", "--concurrency", "1"),
            *("--repeats", "2", "--cache", str(trace.parent / "cache")),
        ]
    )


def test_the_slice_is_the_trace_with_lengths_divided(trace, options):
    sent = list(read_trace(live_comparison.write_slice(options), block=32))
    whole = list(read_trace(trace))[:100]
    assert [one.prompt_ids for one in sent] == [one.prompt_ids for one in whole]
    assert [one.output_ids for one in sent] == [one.output_ids for one in whole]
    assert [one.input_length for one in sent] == [one.input_length // 2 for one in whole]
    assert [one.session for one in sent] == [one.session for one in whole]


def test_memory_is_split_as_the_server_is_told(options):
    memory = live_comparison.Memory(2.0, live_comparison.write_slice(options), options)
    default, states = memory.pools_at(0.9), memory.pools_at(4.0)
    assert states.states > default.states and states.tokens < default.tokens
    assert memory.advised_ratio() in (0.1, 0.2, 0.3, 0.5, 0.9, 2.0, 4.0)
    small = live_comparison.Memory(0.05, live_comparison.write_slice(options), options)
    with pytest.raises(ValueError, match="allowed are more than"):
        small.advised_ratio()


def test_the_advised_split_is_a_server_of_its_own_only_where_it_differs(options):
    default, other = live_comparison.Pools(0.9, 1000, 8), live_comparison.Pools(2.0, 600, 12)
    four = live_comparison.contenders(default, default, options)
    five = live_comparison.contenders(default, other, options)
    assert list(four) == ["stock LRU", "policy 2 (0.5)", "policy 3", "policy 3, elastic"]
    assert set(five) - set(four) == {"policy 3, ratio 2"}
    assert five["policy 3, ratio 2"].startswith("--max-total-tokens 600 ")
    assert "--marconi" not in four["stock LRU"]
    assert "--enable-unified-memory" in four["policy 3, elastic"]


def test_rows_that_exist_are_not_measured_again_and_the_table_has_their_medians(
    options, capsys, monkeypatch
):
    def refuse(*arguments):
        raise AssertionError("all rows exist")

    monkeypatch.setattr(replay, "measure", refuse)
    sent = live_comparison.write_slice(options)
    gib = 2.0
    monkeypatch.setattr(live_comparison, "find_capacities", lambda *_: {"middle": gib})
    memory = live_comparison.Memory(gib, sent, options)
    advised = memory.pools_at(memory.advised_ratio())
    played = replay.parse_arguments(
        live_comparison.replay_arguments(sent, memory.pools_at(0.9), advised, options)
    )
    rows, requests = [], []
    for place, target in enumerate(replay.make_targets(played)):
        for run in range(options.repeats):
            rows.append(
                {
                    "trace": sent.name,
                    "server": target.label,
                    "arguments": list(target.arguments),
                    "run": run,
                    "ttft_ms": {"p50": 10.0 + 10 * place + 2 * run, "p95": 100.0},
                    "token_hit_rate": 0.5,
                    "requests_per_s": 2.0,
                    "server_cpu_seconds": 40.0 - place,
                }
            )
            requests.append(
                {
                    "trace": sent.name,
                    "server": target.label,
                    "run": run,
                    "prompt_tokens": 100,
                    "cached_tokens": 100 if place else 0,
                }
            )
    replay.append(options.out, rows)
    replay.append(live_comparison.requests_file(options.out), requests)
    arguments = [
        *("--trace", str(options.trace), "--model", str(options.model), "--out", str(options.out)),
        *("--limit", "100", "--scale-lengths", "2", "--concurrency", "1"),
        *("--repeats", "2", "--cache", str(options.cache)),
    ]
    assert live_comparison.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "11.0" in printed and "21.0 (x 1.91)" in printed, "medians, and the ratio to stock"
    assert "39.0 (x 0.97)" in printed, "CPU seconds"
    assert "100.0 (+100.0)" in printed, "FLOPs saved in points"
