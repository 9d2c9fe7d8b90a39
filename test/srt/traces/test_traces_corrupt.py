"""Bad places in traces: named by file and line, counted, skipped or fatal; memory stays bounded."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import random
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import FORMATS, Request, TraceError, read_trace
from traces.chat import load_tokenizer
from traces.files import json_objects
from traces_harness import save_byte_tokenizer

COMPRESS = {".xz": lzma.compress, ".gz": gzip.compress, ".zst": zstandard.compress}
GOOD = {"timestamp": 5, "session_id": "s", "input_length": 130, "output_length": 9}
GOOD |= {"hash_ids": [1, 2], "output_hash_ids": []}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Any:
    return load_tokenizer(save_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_length": 0}, "input_length is 0; allowed are whole numbers from 1"),
        ({"input_length": 130.0}, "input_length is 130.0"),
        ({"input_length": True}, "input_length is True"),
        ({"output_length": -1}, "output_length is -1; allowed are whole numbers from 0"),
        ({"output_length": "9"}, "output_length is '9'"),
        ({"timestamp": float("nan")}, "timestamp is nan; allowed are finite numbers from 0"),
        ({"timestamp": float("inf")}, "timestamp is inf"),
        ({"timestamp": -1}, "timestamp is -1"),
        ({"timestamp": None}, "timestamp is None"),
        ({"session_id": [1]}, r"session_id is \[1\]"),
        ({"hash_ids": [1]}, "hash_ids has 1 entries; a prompt of 130 tokens has 2 full blocks"),
        ({"hash_ids": [1, 2, 3, 4]}, "hash_ids has 4 entries"),
        ({"hash_ids": [1, 2.5]}, "hash_ids has an entry that is no whole number"),
        ({"hash_ids": [1, -2]}, "hash_ids has an entry"),
        ({"hash_ids": [1, 2**63]}, "hash_ids has an entry"),
        ({"hash_ids": 12}, "hash_ids is 12, no list"),
        ({"output_hash_ids": [3]}, "output_hash_ids has 1 entries; prompt and output fill 0 more"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path, change, message):
    path = tmp_path / "t.jsonl"
    lines = [json.dumps(record) for record in (GOOD, GOOD | change, GOOD)]
    path.write_text("\n\n".join(lines))
    errors: list[TraceError] = []
    reader = read_trace(path, on_error=errors.append)
    assert len(list(reader)) == 2
    assert reader.skipped == len(errors) == 1
    with pytest.raises(TraceError, match=f"t.jsonl, line 3: {message}") as raised:
        list(read_trace(path, errors="fail"))
    assert str(errors[0]) == str(raised.value)


def test_a_missing_field_is_named_and_the_count_is_kept(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 1, "hash_ids": []}\n' + json.dumps(GOOD) + "\nnonsense\n[]\n")
    reader = read_trace(path)
    assert len(list(reader)) == 1 and reader.skipped == 3
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == f"skipped: {path}, line 1: input_length is missing"
    assert [f"line {line}" in text for line, text in zip((1, 3, 4), printed, strict=True)] == [
        True
    ] * 3


def test_a_time_that_runs_backwards_is_reported_once_and_raised(tmp_path):
    path = tmp_path / "t.jsonl"
    times = (10, 7, 20, 19, 30)
    path.write_text("".join(json.dumps(GOOD | {"timestamp": at}) + "\n" for at in times))
    errors: list[TraceError] = []
    reader = read_trace(path, on_error=errors.append)
    assert [request.timestamp_ms for request in reader] == [10, 10, 20, 20, 30]
    assert (reader.out_of_order, reader.skipped) == (2, 0)
    (error,) = errors
    assert "line 2: arrives at 7.0 ms, after one of 10.0 ms" in str(error)
    with pytest.raises(TraceError, match="line 2"):
        list(read_trace(path, errors="fail"))


@pytest.mark.parametrize("ending", sorted(COMPRESS))
def test_a_compressed_file_that_ends_early_keeps_what_came_before(tmp_path, ending):
    rng = random.Random(0)
    records = [GOOD | {"timestamp": at, "session_id": str(rng.random())} for at in range(4000)]
    whole = COMPRESS[ending]("".join(json.dumps(r) + "\n" for r in records).encode())
    path = tmp_path / f"t.jsonl{ending}"
    path.write_bytes(whole)
    everything = list(read_trace(path))
    assert len(everything) == 4000
    path.write_bytes(whole[: len(whole) * 3 // 4])
    errors: list[TraceError] = []
    reader = read_trace(path, format="blocks", on_error=errors.append)
    some = list(reader)
    assert 0 < len(some) < 4000 and some == everything[: len(some)]
    (error,) = errors
    assert f"line {len(some) + 1}: cannot be read on" in str(error)
    assert reader.skipped == 1
    kept: list[Request] = []
    with pytest.raises(TraceError, match="cannot be read on"):
        for request in read_trace(path, format="blocks", errors="fail"):
            kept.append(request)
    assert kept == some


def test_zstd_frames_one_after_another_are_one_trace(tmp_path):
    line = zstandard.compress((json.dumps(GOOD) + "\n").encode())
    path = tmp_path / "t.jsonl.zst"
    path.write_bytes(line * 3)
    assert len(list(read_trace(path))) == 3


NAMES = [
    *("timestamp", "session_id", "input_length", "output_length", "hash_ids", "output_hash_ids"),
    *("ts", "messages", "role", "content", "input_tokens", "output_tokens", "conversations"),
    *("from", "value", "trajectory", "query", "response", "history", "choices", "obj", "out"),
    *("meta_info", "input_ids", "output_ids", "event"),
]
LINES = st.one_of(
    st.just(json.dumps(GOOD).encode()),
    st.binary(max_size=40).map(lambda data: data.replace(b"\n", b" ")),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(NAMES),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b'{"timestamp": 1e999}']),
    st.just(b'[2026-01-01 00:00:00] {"event": "request.finished", "obj": {}, "out": 3}'),
)


@settings(max_examples=40, deadline=None)
@given(lines=st.lists(LINES, max_size=6))
@pytest.mark.parametrize("format", sorted(FORMATS))
def test_no_content_raises_when_bad_places_are_skipped(tokenizer, format, lines):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        path.write_bytes(b"\n".join(lines))
        errors: list[TraceError] = []
        reader = read_trace(path, format=format, tokenizer=tokenizer, on_error=errors.append)
        for request in reader:
            assert request.input_length >= 1 and request.output_length >= 0
            assert len(request.prompt_ids) == request.input_length // reader.block
        assert reader.skipped + (reader.out_of_order > 0) == len(errors)
        assert all(str(error).startswith(f"{path}, line ") for error in errors)


@settings(max_examples=40, deadline=None)
@given(lines=st.lists(LINES, max_size=8))
def test_each_bad_line_of_a_block_trace_is_the_one_reported(lines):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        path.write_bytes(b"\n".join(lines))
        good = json.dumps(GOOD).encode()
        expected = [n for n, line in enumerate(lines, 1) if line.strip() and line != good]
        errors: list[TraceError] = []
        requests = list(read_trace(path, format="blocks", on_error=errors.append))
        assert len(requests) == lines.count(good)
        assert [str(e).removeprefix(f"{path}, line ").split(":")[0] for e in errors] == [
            str(number) for number in expected
        ]


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=30)), max_size=6), st.booleans()
)
def test_objects_are_cut_as_the_json_module_reads_them(values, pretty):
    text = json.dumps(values, indent=1 if pretty else None, ensure_ascii=False)
    found = list(json_objects(io.BytesIO(text.encode())))
    assert [json.loads(piece) for _, piece in found] == values
    lines = text.split("\n")
    assert all("{" in lines[number - 1] for number, _ in found)


def test_objects_larger_than_a_read_and_stray_text(tmp_path):
    long = json.dumps({"a": "}{" * 200_000})
    text = f"[{long},\n7,\n{{}}\n}} {{"
    pieces = []
    with pytest.raises(EOFError, match="begins in line 4"):
        for piece in json_objects(io.BytesIO(text.encode())):
            pieces.append(piece)
    assert pieces == [(1, long.encode()), (2, b"7,"), (3, b"{}"), (4, b"}")]


def peak_of_reading(path: Path, **options: object) -> int:
    tracemalloc.start()
    for _ in read_trace(path, **options):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_100k_requests_stream_in_bounded_memory(tmp_path):
    peaks = {}
    for count in (10_000, 100_000):
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as out:
            for number in range(count):
                record = {"timestamp": number, "session_id": str(number % 100)}
                record |= {"input_length": 256, "output_length": 128}
                record |= {"hash_ids": [*range(number * 4, number * 4 + 4)]}
                out.write(json.dumps(record) + "\n")
        peaks[count] = peak_of_reading(path, reveal_outputs=False)
    assert peaks[100_000] < peaks[10_000] + 100_000
    # 9 bytes a request, 8 for each of its 2 blocks; growing arrays keep some room.
    revealed = peak_of_reading(tmp_path / "10000.jsonl")
    assert revealed - peaks[10_000] < 10_000 * 25 * 1.6 + 200_000
