"""Sweeps: resumed without losing or repeating a row, in processes too; failures stay alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lab import command as simulate
from lab.costs import load_cost
from lab.run import policy_context
from lab.run import simulate as simulate_run
from lab.shadow_world import ShadowWorld, shadow_cache
from lab.spec import RunSpec
from lab.sweep import finished_rows, sweep
from lab.table import table
from lab.totals import Totals
from lab.world_v0_5_23 import open_world
from pictures.rows import parse_row
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
        (["--memory-gib", "1", "--concurrency", "0"], "--running is 0; allowed is 1 or more"),
        (["--memory-gib", "1", "--admission", "all"], "--admission is 'all'"),
        (["--memory-gib", "1", "--measure-from", "1"], r"--measure-from is 1\.0; allowed are"),
        (["--memory-gib", "1", "--measure-from", "nan"], "--measure-from is nan; allowed are"),
        (
            ["--memory-gib", "1", "--engine", "paper", "--measure-from", "0.5"],
            r"--measure-from is 0\.5 but --engine is paper",
        ),
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


@pytest.mark.parametrize(
    ("default", "other"),
    [
        ({"base": "0.5.23"}, {"base": "0.5.4"}),
        ({"memory": "static"}, {"memory": "elastic"}),
        ({"measure_from": 0.0}, {"measure_from": 0.5}),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_rows_of_before_there_was_a_choice_keep_their_identity(spec, default, other):
    assert replace(spec, **default).key() == spec.key() != replace(spec, **other).key()


@pytest.mark.parametrize("changes", [{}, {"concurrency": 3}, {"engine": "shadow"}], ids=str)
def test_the_later_part_is_what_the_whole_run_found_without_its_beginning(spec, changes):
    """Whole blocks and FLOPs of the parts add up to the whole, so the cache served all of it."""
    spec = replace(spec, **changes)
    whole, later = (simulate_run(replace(spec, measure_from=part)) for part in (0.0, 0.34))
    early = Totals(load_cost(spec.model), spec.block)
    for served in _served(spec):
        if served.index < 21:
            early.add(served)
    assert (whole["requests"], later["requests"], early.requests) == (60, 39, 21)
    for name in ("input_tokens", "unserved"):
        assert later[name] + getattr(early, name) == whole[name]
    hits = [row["token_hit_rate"] * row["input_tokens"] for row in (whole, later)]
    assert hits[0] - hits[1] == pytest.approx(early.hit_tokens) != 0
    assert later["measure_from"] == 0.34 and later["evictions"] == whole["evictions"]


def _served(spec):
    context = policy_context(spec, load_cost(spec.model))
    if spec.engine == "shadow":
        world = ShadowWorld(shadow_cache(spec, context), spec.block)
        yield from map(world.serve, spec.requests())
        return
    with open_world(spec, context) as world:
        yield from world.serve(spec.requests())


def test_a_table_keeps_whole_and_later_rows_apart(spec):
    rows = [simulate_run(replace(spec, measure_from=part)) for part in (0.0, 0.5)]
    assert len({parse_row(row).setting for row in rows}) == 2
    assert "from 50 % on" in table(rows) and len(table(rows).splitlines()) == 4
