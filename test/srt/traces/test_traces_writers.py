"""Traces written and read again, by our readers and by SGLang's own dataset loaders."""

from __future__ import annotations

import asyncio
import json
import tempfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import convert_trace
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import Request, read_trace
from traces.chat import load_tokenizer
from traces.expand import expand_block, expand_output, expand_prompt
from traces.regroup import regroup
from traces.writers import WriterOptions, write_trace
from traces_harness import hashed_traces, save_byte_tokenizer


def read_again(requests: list[Request], to: str, ending: str = "", **options: object):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.jsonl{ending}"
        assert write_trace(requests, path, to) == len(requests)
        return list(read_trace(path, format=to, errors="fail", **options))


@settings(max_examples=50, deadline=None)
@given(hashed_traces(), st.sampled_from(["", ".xz", ".gz", ".zst"]))
def test_blocks_are_read_as_they_were_written(requests, ending):
    assert read_again(requests, "blocks", ending) == requests


@settings(max_examples=50, deadline=None)
@given(hashed_traces(512))
def test_mooncake_loses_sessions_outputs_and_hints_alone(requests):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        write_trace(requests, path, "mooncake", WriterOptions(block=512))
        assert list(read_trace(path, format="mooncake", errors="fail")) == [
            replace(request, session=None, output_ids=(), hint=None) for request in requests
        ]


@settings(max_examples=30, deadline=None)
@given(hashed_traces())
def test_tokens_written_as_marconi_lines_are_read_again(requests):
    once = read_again(requests, "marconi")
    assert [(r.timestamp_ms, r.input_length, r.output_length) for r in once] == [
        (r.timestamp_ms, r.input_length, r.output_length) for r in requests
    ]
    assert [r.session for r, had in zip(once, requests, strict=True) if had.session] == [
        r.session for r in requests if r.session
    ]
    assert read_again(once, "marconi") == once


@given(st.lists(st.integers(0, 4), max_size=24), st.lists(st.integers(0, 4), max_size=24))
def test_regrouped_ids_share_what_whole_groups_share(left, right):
    shared = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        min(len(left), len(right)),
    )
    a, b = (
        regroup(Request(0, None, 64 * len(ids) + 1, 0, tuple(ids), ()), 64, 256)
        for ids in (left, right)
    )
    assert len(a.prompt_ids) == len(left) // 4
    for count in range(1, min(len(a.prompt_ids), len(b.prompt_ids)) + 1):
        assert (a.prompt_ids[:count] == b.prompt_ids[:count]) == (count <= shared // 4)
    with pytest.raises(ValueError, match="do not add up"):
        regroup(a, 96, 512)


def test_a_later_prompt_extends_the_expansion_of_prompt_and_output():
    first = Request(0, "s", 100, 200, (1,), (2, 3, 4))
    second = Request(1, "s", 330, 10, (1, 2, 3, 4, 5), ())
    held = expand_prompt(first, 64, 1000) + expand_output(first, 64, 1000)
    assert (len(expand_prompt(first, 64, 1000)), len(held)) == (100, 300)
    prompt = expand_prompt(second, 64, 1000)
    assert prompt[:256] == held[:256] and len(prompt) == 330
    assert prompt[:64] == expand_block(1, 64, 1000) and max(prompt) < 1000
    own = replace(first, input_tokens=(1, 2), output_tokens=(3,))
    assert (expand_prompt(own, 64, 9), expand_output(own, 64, 9)) == ([1, 2], [3])
    # The expansion of an id is fixed: a server that was warmed yesterday still hits.
    assert expand_block(1, 4, 1000) == [473, 511, 755, 950]


@pytest.fixture
def trace(tmp_path) -> Path:
    path = tmp_path / "t.jsonl"
    requests = [Request(1000.0 * i, f"s{i % 2}", 130, 40, (7, 100 + i), ()) for i in range(6)]
    write_trace(requests, path, "blocks")
    return path


def test_bench_serving_loads_a_converted_mooncake_trace(trace, tmp_path):
    from sglang.benchmark.datasets.mooncake import MooncakeDataset, get_mooncake_request_over_time

    out = tmp_path / "m.jsonl"
    convert_trace.main([str(trace), str(out), "--to", "bench-serving-mooncake"])
    arguments = Namespace(dataset_path=str(out), mooncake_workload="mooncake", num_prompts=5)
    records = MooncakeDataset.from_args(arguments).load()
    assert [record["timestamp"] for record in records] == [0, 1000, 2000, 3000, 4000]
    tokenizer = load_tokenizer(save_byte_tokenizer(tmp_path / "tokenizer"))

    async def prompts() -> list:
        return [row async for row in get_mooncake_request_over_time(records, tokenizer, 0.0, 1)]

    rows = asyncio.run(prompts())
    assert [row.output_len for row in rows] == [40] * 5
    shared = rows[0].prompt.index("100")
    assert rows[0].prompt[:shared] == rows[1].prompt[:shared]
    assert rows[0].prompt != rows[1].prompt


def test_bench_serving_loads_a_converted_custom_trace(trace, tmp_path):
    from sglang.benchmark.datasets.custom import CustomDataset

    folder = save_byte_tokenizer(tmp_path / "tokenizer")
    out = tmp_path / "c.jsonl"
    target = ["--to", "bench-serving-custom"]
    with pytest.raises(SystemExit, match="--tokenizer"):
        convert_trace.main([str(trace), str(out), *target])
    convert_trace.main([str(trace), str(out), *target, "--tokenizer", folder])
    arguments = Namespace(
        dataset_path=str(out),
        num_prompts=10,
        sharegpt_output_len=None,
        sharegpt_context_len=None,
        prompt_suffix="",
        apply_chat_template=False,
    )
    rows = CustomDataset.from_args(arguments).load(load_tokenizer(folder))
    assert len(rows) == 6
    # Random bytes are not always text: what is not becomes a replacement of three bytes.
    assert all(row.prompt_len >= 100 and row.output_len >= 30 for row in rows)
    assert len({row.prompt[:30] for row in rows}) == 1
    assert len({row.prompt for row in rows}) == 6


def test_conversion_says_what_it_read_and_what_is_wrong(trace, tmp_path, capsys):
    with trace.open("a") as out:
        out.write("nonsense\n")
    target = tmp_path / "out.jsonl.zst"
    convert_trace.main([str(trace), str(target), "--to", "mooncake"])
    told = capsys.readouterr().err
    assert "6 requests of format blocks, 1 places skipped, 0 out of order" in told
    assert len(list(read_trace(target))) == 6
    with pytest.raises(SystemExit, match="line 7"):
        convert_trace.main([str(trace), str(target), "--to", "mooncake", "--errors", "fail"])
    with pytest.raises(SystemExit, match="96 tokens do not add up to blocks of 512"):
        convert_trace.main([str(_one(tmp_path)), str(target), "--to", "mooncake", "--block", "96"])


def _one(folder: Path) -> Path:
    path = folder / "one.jsonl"
    record = {"timestamp": 0, "input_length": 96, "output_length": 1, "hash_ids": [1]}
    path.write_text(json.dumps(record) + "\n")
    return path
