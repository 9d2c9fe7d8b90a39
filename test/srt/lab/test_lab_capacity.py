"""Capacities: the memory that is found makes stock LRU save the share that its name stands for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.capacity import CAPACITIES, TOLERANCE, _search, find_capacities, with_capacities
from lab.run import simulate
from lab.spec import RunSpec, with_memory
from lab.table import table
from test_simulate import chat_trace


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> RunSpec:
    path = tmp_path_factory.mktemp("capacity") / "chat.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in chat_trace(8, requests=150)))
    return RunSpec(
        trace=str(path),
        policy="lru",
        model="Qwen3-Next-80B-A3B-Instruct",
        kv_tokens=1,
        state_slots=1,
    )


def test_stock_lru_saves_the_share_of_the_infinite_cache(spec, tmp_path):
    found = find_capacities(spec, list(CAPACITIES), tmp_path)
    most = simulate(replace(spec, policy="infinite", kv_tokens=64, state_slots=1))["flops_saved"]
    rows = []
    for name, gib in found.items():
        rows.append(simulate(replace(with_memory(spec, gib, 0.9), capacity=name)))
        # A small trace saves in coarse steps.
        assert rows[-1]["flops_saved"] / most == pytest.approx(CAPACITIES[name], abs=0.1)
    assert found["starved"] < found["middle"] < found["ample"]
    text = table(rows)
    assert all(name in text for name in CAPACITIES) and f"{found['middle']:g} GiB" in text
    assert "SGLang 0.5.4" in table([{**rows[0], "base": "0.5.4"}]) and "SGLang" not in text
    shared, split = {"memory": "elastic"}, {"mamba_full_memory_ratio": 2.0}
    assert "elastic" in table([{**rows[0], **shared}]) and "elastic" not in text
    assert "ratio 2" in table([{**rows[0], **split}]) and "ratio" not in text


@pytest.mark.parametrize("engine", ["sglang", "shadow"])
def test_infinite_is_a_capacity_of_every_engine_and_needs_no_search(spec, tmp_path, capsys, engine):
    asked = replace(spec, engine=engine)
    (sized,) = with_capacities(asked, ["infinite"], tmp_path / "cache", 0.9, engine)
    assert not (tmp_path / "cache").exists() and capsys.readouterr().err == ""
    row, bound = simulate(sized), simulate(replace(spec, policy="infinite"))
    assert row["capacity"] == "infinite" and not any(row["evictions"].values())
    assert row["token_hit_rate"] == pytest.approx(bound["token_hit_rate"], abs=0.01)


def test_the_shadow_finds_its_own_capacities_and_says_how_far_it_is(spec, tmp_path, capsys):
    (middle,) = with_capacities(spec, ["middle"], tmp_path, 0.9, "shadow")
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "chat.jsonl: searching capacities middle by engine shadow"
    assert len(told) > 3 and all("of what an endless cache does" in line for line in told[1:])
    served = find_capacities(spec, ["middle"], tmp_path)["middle"]
    assert middle.memory_gib == pytest.approx(served, rel=0.25)


def test_a_table_of_flops_alone_marks_who_saves_most():
    def row(policy, hit, flops):
        sizes = {"trace": "a.jsonl", "memory_gib": 2, "kv_tokens": 1, "capacity": None}
        rates = {"token_hit_rate": hit, "flops_saved": flops, "policy": policy}
        return {**sizes, **rates, "admission": "sglang", "concurrency": None}

    rows = [row("lru", 0.5, 0.4), row("arc", 0.4, 0.6), row("clairvoyant", 0.9, 0.9)]
    assert table(rows).splitlines()[2] == "| a | 2 GiB | **50.0/40.0** | 40.0/60.0 | 90.0/90.0 |"
    assert table(rows, flops=True).splitlines()[2] == "| a | 2 GiB | 40.0 | **60.0** | 90.0 |"


@given(st.floats(0.05, 300), st.floats(0.01, 0.6), st.floats(0.01, 0.39), st.floats(0, 1))
def test_the_search_comes_as_near_as_one_slot_allows(at, below, jump, target):
    """Against a share that climbs to ``below``, jumps at one size, and climbs on."""

    def share(gib):
        if gib < at:
            return below * gib / at
        # Not from below, where rounding may keep it from ever being all.
        return 1 - (1 - below - jump) * (1 - min((gib - at) / (10 * at), 1))

    found = _search(share, target)
    sizes = [at * 1.005**step for step in range(-1400, 1000)]
    nearest = min(abs(share(size) - target) for size in sizes if size >= 1e-3)
    assert abs(share(found) - target) <= max(nearest, TOLERANCE) + 0.02


def test_a_trace_without_reuse_has_no_capacity(spec, tmp_path):
    path = tmp_path / "once.jsonl"
    lines = [
        {"timestamp": i, "input_length": 128, "output_length": 1, "hash_ids": [2 * i, 2 * i + 1]}
        for i in range(5)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"once\.jsonl: nothing is ever reused"):
        find_capacities(replace(spec, trace=str(path)), ["middle"], tmp_path / "cache")
