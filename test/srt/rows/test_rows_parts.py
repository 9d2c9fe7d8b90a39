"""Parts: rows made of what commands print, and runs that go on where they were stopped."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies import check_policy
from rows.cells import CELLS, SIZES
from rows.part import Command, Found, Part, table_records
from rows.parts import PARTS, live, timed
from rows.parts.simulated import WEIGHTS, best_weight
from rows.running import Place, RunFailed, run_part
from rows.sources import Sources
from rows.store import Row, read_rows
from sglang.srt.marconi_utils import cost_by_name

ROOT = Path(__file__).resolve().parents[3]
SOURCES = Sources(ROOT)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_part_names_code_and_commands_that_exist(part: Part) -> None:
    assert SOURCES.today(part.code)
    for command in part.commands:
        assert (ROOT / command.words[0]).is_file()
    assert part.rows({}) == []


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_the_simulator_knows_the_models_and_policies_of_a_part(part: Part) -> None:
    for command in part.commands:
        if command.words[0].endswith("simulate.py"):
            given = dict(zip(command.words[1::2], command.words[2::2], strict=True))
            cost_by_name(given["--model"])
            for policy in given["--policy"].split(","):
                check_policy(policy)


def test_each_curve_has_the_sizes_of_its_cells() -> None:
    for trace, sizes in CELLS.items():
        assert set(sizes.values()) <= set(SIZES[trace])
        assert len(SIZES[trace]) >= 6


@given(st.lists(st.floats(0, 1), min_size=len(WEIGHTS), max_size=len(WEIGHTS)))
def test_the_best_weight_saves_most_and_is_the_lowest_of_equals(saved: list[float]) -> None:
    runs = {
        (5.0, f"marconi:{weight}"): {"flops_saved": value}
        for weight, value in zip(WEIGHTS, saved, strict=True)
    }
    found = best_weight(runs, 5.0)
    assert found is not None
    assert found[1]["flops_saved"] == max(saved)
    assert found[0] == WEIGHTS[saved.index(max(saved))]
    assert best_weight({key: run for key, run in runs.items() if key[1] != "marconi:1"}, 5) is None


def test_a_policy_s_row_has_percent_and_where_tokens_were_lost() -> None:
    record = lab_record("tau-airline", 5.19, "server:3") | {
        "flops_saved": 0.857552,
        "token_hit_rate": 0.5,
        "lost_tokens": {"state_evicted": 250, "kv_evicted": 0, "never_admitted": None},
    }
    (row,) = PARTS["policies"].rows({"tau-airline": [record]})
    assert row["id"] == "policies/tau-airline/middle/policy-3"
    assert (row["flops_saved"], row["token_hit_rate"]) == (85.7552, 50.0)
    assert (row["lost_state_evicted"], row["lost_kv_evicted"]) == (25.0, 0.0)
    assert "--trace traces/tau-airline.jsonl.xz" in row["measured"]["command"]


def test_runs_of_another_set_up_make_no_row() -> None:
    record = lab_record("tau-airline", 5.19, "lru")
    for other in ({"admission": "judicious"}, {"measure_from": 0.5}, {"model": "another"}):
        assert PARTS["policies"].rows({"tau-airline": [record | other]}) == []


def lab_record(trace: str, gib: float, policy: str) -> dict[str, Any]:
    return {
        **{"trace": f"{trace}.jsonl.xz", "policy": policy, "memory_gib": gib, "engine": "sglang"},
        **{"memory": "static", "mamba_full_memory_ratio": 0.9, "admission": "sglang"},
        **{"measure_from": 0.0, "model": "Qwen/Qwen3-Next-80B-A3B-Instruct"},
        **{"flops_saved": 0.5, "token_hit_rate": 0.5, "input_tokens": 1000, "lost_tokens": {}},
    }


def test_the_tree_s_table_becomes_microseconds_and_ratios() -> None:
    text = (
        "| nodes | µs to | stock, Rust core | stock, Python core | policy 2 |\n"
        "|---|---|---|---|---|\n"
        "| 100,000 | evict a leaf's state | 421 | 18,799 | 77 (0.18 / 0.00) |\n"
    )
    (row,) = timed.tree_rows(table_records(text), "command")
    assert row["id"] == "tree-speed/100000/evict-a-leaf-state"
    assert row["python"] == {"us": 18799.0}
    assert row["policy_2"] == {"us": 77.0, "of_rust": 0.18, "of_python": 0.0}


def test_the_advisor_s_table_becomes_a_row_a_policy() -> None:
    text = (
        "FLOPs saved, %, by --mamba-full-memory-ratio\n"
        "policy                      0.1      0.9  elastic\n"
        "stock LRU                     -     61.0        -\n"
        "policy 3 (value)           10.5     87.1     90.6\n"
        "\nBest: policy 3 (value) with elastic memory.\n"
    )
    records = timed.advised_records(text)
    lru, value = PARTS["splits"].rows({"advise": records})
    assert (lru["id"], lru["ratio_0_9"]) == ("splits/lru", 61.0)
    assert "ratio_0_1" not in lru
    assert (value["ratio_0_1"], value["one_memory"]) == (10.5, 90.6)


def test_a_busy_server_s_rate_is_that_to_stock_in_the_same_run() -> None:
    rates = {("stock", 0): 100, ("policy-1", 0): 90, ("stock", 1): 50, ("policy-1", 1): 55}
    records = [
        {
            **{"server": server, "launch": launch, "run": 0, "requests_per_s": rate},
            **{"requests": 10, "token_hit_rate": 0.25, "ttft_ms": {"mean": 4.0}},
            **{"cpu_seconds": 0.1, "seconds": 2.0},
            "scheduler": {
                **{"forward": 0.05, "rest": 0.01, "calls": 8, "seconds": 0.004},
                **{"0.002": 7, "0.005": 8},
            },
        }
        for (server, launch), rate in rates.items()
    ]
    stock, policy = timed.busy_rows(records, "command")
    assert (stock["launch_1"], stock["rate_of_stock"]) == (1.0, 1.0)
    assert (policy["launch_1"], policy["launch_2"]) == (0.9, 1.1)
    assert policy["rate_of_stock"] == pytest.approx(1.0)
    assert (policy["cpu_ms"], policy["over_2_ms"], policy["over_5_ms"]) == (10.0, 2, 0)


def test_live_servers_are_summed_up_by_medians() -> None:
    records = [
        {
            **{"server": server, "token_hit_rate": hit, "flops_saved": hit, "requests_per_s": 1.0},
            "ttft_ms": {"p50": 5.0, "p95": 9.0},
        }
        for server in ("stock LRU", "policy 3, ratio 0.5", "somebody")
        for hit in (0.2, 0.4, 0.9)
    ]
    lru, advised = live.live_rows("live-chats", records, "command")
    assert lru["id"] == "live-chats/lru"
    assert (lru["token_hit_rate"], lru["token_hit_rate_least"]) == (40.0, 20.0)
    assert (advised["id"], advised["ratio"]) == ("live-chats/policy-3-advised-split", 0.5)


def test_the_demo_s_shares_become_percent() -> None:
    measures = {"token_hit_rate": 0.5, "flops_saved": 2e9, "flops_saved_fraction": 0.25}
    saved = {"workload": "clients", "server": "policy-3", "seed": 0, "ttft_p50": 3.0, **measures}
    (row,) = live.demo_rows([{**saved, "foreign_cores": 0.0}], "make demo")
    assert row["id"] == "demo/clients/policy-3" and "seed" not in row
    assert (row["token_hit_rate"], row["flops_saved"], row["gflops_saved"]) == (50.0, 25.0, 2.0)
    assert row["ttft_p50"] == 3.0
    (busy,) = live.demo_rows([{**saved, "foreign_cores": 1.0}], "make demo")
    assert "ttft_p50" not in busy and busy["flops_saved"] == 25.0


# -- running


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "code.py").write_text("pass\n")
    (tmp_path / "measure.py").write_text(
        "import sys\n"
        "name, out = sys.argv[1], sys.argv[sys.argv.index('--out') + 1]\n"
        "open('calls', 'a').write(name + ' ')\n"
        "assert not name.endswith('bad'), 'words of the failure'\n"
        "open(out, 'a').write('{\"name\": \"' + name + '\"}\\n{\"na')\n"
    )
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@localhost", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "some"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    scratch, traces = tmp_path / "scratch", tmp_path / "elsewhere"
    return Place(root=tmp_path, rows=tmp_path / "results", traces=traces, scratch=scratch)


def part_of(*names: str) -> Part:
    def rows(found: Found) -> list[Row]:
        return [
            {"part": "made", "id": f"made/{out}", "name": records[0]["name"], "measured": measured}
            for out, records in found.items()
        ]

    measured: Mapping[str, str] = {"command": "typed"}
    commands = tuple(Command(("measure.py", name), name.rpartition("/")[2]) for name in names)
    return Part("made", "something", 1, ("code.py",), commands, rows)


def test_a_run_goes_on_where_it_was_stopped(place: Place) -> None:
    sources = Sources(place.root)
    with pytest.raises(RunFailed, match="words of the failure"):
        run_part(part_of("traces/a", "bad"), place, sources)
    run_part(part_of("traces/a", "b"), place, sources)
    run_part(part_of("traces/a", "b"), place, sources)
    called = (place.root / "calls").read_text().split()
    assert called == [f"{place.traces}/a", "bad", "b"]
    rows = read_rows(place.rows)
    assert rows.value("made/a", "name") == f"{place.traces}/a"
    assert rows.value("made/b", "measured.commit") == sources.commit_of(["code.py"])


def test_a_whole_run_leaves_no_row_of_an_earlier_form(place: Place) -> None:
    sources = Sources(place.root)
    run_part(part_of("a", "b"), place, sources)
    run_part(part_of("b"), place, sources)
    assert list(read_rows(place.rows).by_id) == ["made/b"]


def test_what_did_not_run_keeps_its_rows(place: Place) -> None:
    sources = Sources(place.root)
    run_part(part_of("a", "b"), place, sources)
    before = read_rows(place.rows).by_id
    (place.root / "code.py").write_text("pass\nNEW = 1\n")
    with pytest.raises(ValueError, match="not committed"):
        run_part(part_of("a", "b"), place, sources)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "commit", "-q", "-am", "other"], cwd=place.root, check=True)
    run_part(part_of("a", "b"), place, sources, only=["b"])
    after = read_rows(place.rows).by_id
    assert after["made/a"] == before["made/a"]
    assert after["made/b"]["measured"]["commit"] != before["made/b"]["measured"]["commit"]
    assert json.loads(json.dumps(after["made/b"]))["name"] == "b"
