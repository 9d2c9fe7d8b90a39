"""Rows of the paper's world: the engine's own results, from traces with and without tokens."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from lab.paper_world import simulate_paper, token_bytes
from lab.spec import RunSpec
from paper import CORRECTED, PaperCache, PaperConfig
from sglang.srt.marconi_utils import PAPER_7B
from test_simulate import KEYS, chat_trace
from traces import Request


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> RunSpec:
    path = tmp_path_factory.mktemp("paper") / "chat.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in chat_trace(6, requests=90)))
    return RunSpec(
        trace=str(path),
        policy="vllm+",
        model="marconi-7b",
        kv_tokens=0,
        state_slots=0,
        engine="paper",
        memory_gib=1.5,
    )


@pytest.mark.parametrize(
    ("policy", "config"),
    [
        ("vllm+", {"policy": "vllm"}),
        ("sglang+", {"policy": "v1"}),
        ("marconi", {"policy": "v2"}),
        ("marconi:0.7", {"policy": "v3", "alpha": 0.7}),
    ],
)
def test_a_row_is_what_the_engine_found(spec, policy, config):
    row = simulate_paper(replace(spec, policy=policy))
    assert set(row) >= KEYS and row["policy"] == policy
    cache = PaperCache(PaperConfig(capacity_bytes=int(1.5 * 2**30), fixes=CORRECTED, **config))
    for request in spec.requests():
        cache.serve(*token_bytes(request, 64))
    summary = cache.summary()
    assert row["token_hit_rate"] == summary.token_hit_rate > 0
    assert row["flops_saved"] == summary.flops_saved_share
    assert sum(row["evictions"].values()) == summary.evicted > 0
    assert row["requests"] == 90 and row["capacity_bytes"] == int(1.5 * 2**30)


def test_another_shape_of_the_model_is_read_from_a_file(spec, tmp_path):
    path = tmp_path / "thin.json"
    path.write_text(json.dumps({**asdict(PAPER_7B), "n": 16}))
    thin = simulate_paper(replace(spec, model=str(path), policy="sglang+"))
    thick = simulate_paper(replace(spec, policy="sglang+"))
    assert thin["model"] == "thin"
    assert thin["token_hit_rate"] > thick["token_hit_rate"], "smaller states leave more room"


def test_modes_differ_where_the_published_defects_matter(spec):
    rows = [
        simulate_paper(replace(spec, policy="marconi:1", paper_mode=mode, memory_gib=1.0))
        for mode in ("corrected", "as_published")
    ]
    assert rows[0]["evictions"] != rows[1]["evictions"]


def test_real_tokens_are_used_where_a_trace_has_them():
    request = Request(0, None, 3, 1, (), (), input_tokens=(5, 6, 7), output_tokens=(8,))
    prompt, output = token_bytes(request, 64)
    assert prompt == b"".join(i.to_bytes(4, "little") for i in (5, 6, 7))
    assert output == (8).to_bytes(4, "little")


def test_equal_ids_are_equal_tokens():
    one = token_bytes(Request(0, None, 128, 64, (1, 2), (3,)), 64)
    longer = token_bytes(Request(0, None, 192, 0, (1, 2, 3), ()), 64)
    assert one[0] + one[1] == longer[0] and len(longer[0]) == 192 * 4
