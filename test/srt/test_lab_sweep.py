"""Sweeps: resumed without losing or repeating a row, in processes too; failures stay alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import simulate
from lab.spec import RunSpec
from lab.sweep import finished_rows, sweep
from test_simulate import chat_trace


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> RunSpec:
    path = tmp_path_factory.mktemp("sweep") / "chat.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in chat_trace(5, requests=60)))
    return RunSpec(
        trace=str(path), policy="lru", model="marconi-7b", kv_tokens=20000, state_slots=16
    )


def run(specs, out=None, **options) -> list[dict]:
    return list(sweep(specs, **{"jobs": 1, "backend": "loky", "out": out, **options}))


def without_times(rows: list[dict]) -> list[dict]:
    return sorted(
        ({**row, "seconds": 0} for row in rows), key=lambda row: (row["policy"], row["run"])
    )


def test_an_interrupted_sweep_goes_on_where_it_stopped(spec, tmp_path, capsys):
    specs = [replace(spec, policy=policy) for policy in ("lru", "server:1", "server:2", "cap:2")]
    out = tmp_path / "rows.jsonl"
    before = run(specs[:2], out)
    with out.open("a") as file:
        file.write('{"run": "cut o')
    after = run(specs, out)
    assert after[:2] == before
    assert [row["policy"] for row in after] == [one.policy for one in specs]
    assert "line 3" in capsys.readouterr().err
    written = [json.loads(line) for line in out.read_text().splitlines() if line[-1] == "}"]
    assert written == after, "every row once"
    assert set(finished_rows(out)) == {one.key() for one in specs}


def test_processes_find_what_one_process_finds(spec):
    specs = [replace(spec, policy=policy) for policy in ("lru", "server:2:1")]
    assert without_times(run(specs, jobs=2)) == without_times(run(specs))


def test_a_run_that_fails_is_reported_and_the_others_go_on(spec, tmp_path, capsys):
    broken = replace(spec, trace=str(tmp_path / "absent.jsonl"))
    rows = run([broken, spec], tmp_path / "rows.jsonl")
    assert [row["trace"] for row in rows] == ["chat.jsonl"]
    assert "absent.jsonl" in capsys.readouterr().err
    assert len(finished_rows(tmp_path / "rows.jsonl")) == 1


def test_a_key_names_a_run_and_only_it(spec):
    others = [
        replace(spec, policy="server:1"),
        replace(spec, kv_tokens=20001),
        replace(spec, concurrency=4),
        replace(spec, labels={"rate": 1.0}),
    ]
    assert len({spec.key(), *(one.key() for one in others)}) == 5
    assert replace(spec).key() == spec.key()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "best", "--memory-gib", "1"], "--policy is 'best'"),
        (["--memory-gib", "1", "--capacity", "ample"], "--memory-gib, --capacity"),
        (["--kv-tokens", "10"], "--state-slots"),
        (["--capacity", "huge"], "--capacity is 'huge'"),
        (["--memory-gib", "1", "--label", "x"], "--label is 'x'"),
        (["--memory-gib", "1", "--concurrency", "0"], "--concurrency is 0"),
        (["--memory-gib", "1", "--admission", "all"], "--admission is 'all'"),
        (["--memory-gib", "1", "--engine", "paper"], "--policy is 'lru'"),
        (["--kv-tokens", "9", "--state-slots", "9", "--engine", "paper"], "--memory-gib"),
    ],
)
def test_bad_options_are_named_before_anything_runs(spec, arguments, message):
    with pytest.raises(SystemExit, match=message):
        simulate.main(["--trace", spec.trace, "--model", "marconi-7b", *arguments])


def test_an_absent_trace_and_an_unknown_model_are_named(spec):
    with pytest.raises(SystemExit, match=r"absent\.jsonl"):
        simulate.main(["--trace", "absent.jsonl", "--model", "marconi-7b", "--memory-gib", "1"])
    with pytest.raises(SystemExit, match="not a known model"):
        simulate.main(["--trace", spec.trace, "--model", "gpt-9", "--memory-gib", "1"])


def test_labels_become_a_column(spec, capsys):
    trace = Path(spec.trace)
    sizes = ["--kv-tokens", "20000", "--state-slots", "16", "--limit", "5"]
    labels = ["--label", "rate=2", "--label", "shape=chat"]
    run_of = ["--trace", str(trace), "--model", "marconi-7b", "--policy", "lru"]
    simulate.main([*run_of, *sizes, *labels])
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["labels"] == {"rate": 2.0, "shape": "chat"} and row["requests"] == 5


def test_rows_of_before_there_was_a_choice_of_base_keep_their_identity(spec):
    with_the_products = replace(spec, base="0.5.23")
    assert with_the_products.key() == spec.key() != replace(spec, base="0.5.4").key()
