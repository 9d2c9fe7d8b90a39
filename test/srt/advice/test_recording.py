"""Recorded requests: in order of arrival, without tokens, readable by the advice and by the lab."""

from __future__ import annotations

import itertools
import json
import math
import time
from array import array
from dataclasses import replace
from types import SimpleNamespace

import pytest
from sglang.srt.mem_cache.mamba_radix.tuning import arrival_of
from sglang.srt.mem_cache.marconi.advice import command as advise
from sglang.srt.mem_cache.marconi.advice.recording import read_recording
from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.tuning import recorder as recorder_module
from sglang.srt.mem_cache.marconi.tuning.block_hashes import BlockHasher
from sglang.srt.mem_cache.marconi.tuning.events import Began, Ended, Flushed
from sglang.srt.mem_cache.marconi.tuning.recorder import Recorder
from sglang.srt.observability.req_time_stats import SchedulerReqTimeStats
from traces import read_trace

BLOCK = 64
MODEL = "Qwen3-Next-80B-A3B-Instruct"


def hashes(tokens: list[int]) -> array[int]:
    return array("Q", BlockHasher(BLOCK).extend(7, 0, tokens).tobytes())


def began(run_id: int, tokens: list[int]) -> Began:
    return Began(run_id, len(tokens), hashes(tokens))


def ended(run_id: int, prompt: list[int], output: list[int], hint: Hint | None = None) -> Ended:
    blocks = len(prompt) // BLOCK
    return Ended(run_id, hashes([*prompt, *output[:-1]])[blocks:], len(output), hint)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "requests.jsonl"


def record(path, events) -> None:
    ticks = iter(range(10_000))
    recorder = Recorder(path, BLOCK, clock=lambda: float(next(ticks)))
    for event in events:
        recorder.follow(event)


def test_requests_are_written_in_order_of_arrival(path):
    long, short, third = [list(range(n)) for n in (300, 70, 150)]
    events = [
        *(began(0, long), began(1, short), ended(1, short, [1, 2, 3])),
        *(began(2, third), Flushed(), ended(0, long, list(range(100))), Ended(2, None)),
    ]
    record(path, events)
    first, second = lines(path)
    assert (first["input_length"], first["output_length"]) == (300, 100)
    assert (second["input_length"], second["output_length"]) == (70, 3)
    assert first["timestamp"] < second["timestamp"]
    assert len(first["hash_ids"]) == 300 // BLOCK
    assert len(first["output_hash_ids"]) == 399 // BLOCK - 300 // BLOCK
    assert first["hash_ids"][0] == second["hash_ids"][0]
    assert max(first["hash_ids"]) < 1 << 62


def test_arrivals_are_recorded_where_they_are_known(path):
    tokens = list(range(70))
    known = replace(began(0, tokens), arrived_ms=1_700_000_000_123, waited_ms=456)
    record(path, [known, began(1, tokens), *(ended(id, tokens, [1, 2]) for id in (0, 1))])
    first, second = lines(path)
    assert (first["timestamp"], first["waited_ms"]) == (1_700_000_000_123, 456)
    assert "waited_ms" not in second, "as in recordings of before"
    first, second = read_recording(path, pytest.fail)[0]
    assert (first.timestamp_ms, first.waited_ms) == (1_700_000_000_123, 456)
    assert math.isnan(second.timestamp_ms) and second.waited_ms is None
    assert first.output_length == second.output_length == 2


def test_an_arrival_is_when_sglang_received_the_request():
    request = SimpleNamespace(time_stats=SchedulerReqTimeStats())
    assert arrival_of(request) == arrival_of(SimpleNamespace()) == (0, 0)
    request.time_stats.set_scheduler_recv_time(time.perf_counter() - 3)
    arrived, waited = arrival_of(request)
    assert 3000 <= waited < 60_000
    assert arrived == pytest.approx(1000 * time.time() - waited, abs=1000)


def test_a_request_that_never_ends_holds_up_only_so_many(path, monkeypatch):
    monkeypatch.setattr(recorder_module, "MOST_HELD", 3)
    tokens = list(range(BLOCK))
    events = [began(0, tokens)]
    for run_id in range(1, 6):
        events += [began(run_id, tokens), ended(run_id, tokens, [1])]
    record(path, events)
    written = lines(path)
    assert len(written) == 6 and written[0]["output_length"] == 0


def test_what_was_recorded_is_what_advice_and_lab_read(path, capsys):
    history = list(range(200))
    events = []
    for run_id in range(30):
        prompt, output = list(history), list(range(run_id * 1000, run_id * 1000 + 70))
        said = [None, *Hint][run_id % 7]
        events += [began(run_id, prompt), ended(run_id, prompt, output, said)]
        history += output
    record(path, events)
    requests, block = read_recording(path, pytest.fail)
    lab = list(read_trace(path))
    assert block == BLOCK and len(requests) == len(lab) == 30
    for mine, labs in zip(requests, lab, strict=True):
        assert mine.input_length == labs.input_length
        assert len(mine.prompt_ids) == len(labs.prompt_ids)
        assert len(mine.output_ids) == len(labs.output_ids)
        assert (mine.hint and mine.hint.value) == labs.hint
    assert [one.hint for one in requests[:7]] == [None, *Hint]
    # Each prompt goes on from the one before it and its output, here as in what the server saw.
    for before, after in itertools.pairwise(requests):
        whole = [*before.prompt_ids, *before.output_ids]
        assert list(after.prompt_ids[: len(whole)]) == whole
    options = ["--recording", str(path), "--model", MODEL, "--memory-gib", "20"]
    assert advise.main([*options, "--policy", "policy 3 (value)", "--ratios", "0.5,0.9"]) == 0
    assert f"launch_server --model {MODEL}" in capsys.readouterr().out


def test_a_corrupt_line_is_named_and_left_out(path):
    record(path, [began(0, list(range(70))), ended(0, list(range(70)), [1])])
    good = path.read_text()
    path.write_text(good + '{"input_length": 5}\n' + "nonsense\n" + good.replace("70", "700"))
    reported: list[str] = []
    requests, _ = read_recording(path, reported.append)
    assert len(requests) == 1
    assert [line.split(": left out")[0] for line in reported] == [f"{path}:{n}" for n in (2, 3, 4)]
    path.write_text("")
    with pytest.raises(ValueError, match="holds no request"):
        read_recording(path, reported.append)
    with pytest.raises(SystemExit, match="holds no request"):
        advise.main(["--recording", str(path), "--model", MODEL, "--memory-gib", "3"])


def test_blocks_of_two_sizes_do_not_mix(path):
    record(path, [began(0, list(range(70))), ended(0, list(range(70)), [1])])
    path.write_text(path.read_text() + path.read_text().replace('tokens":64', 'tokens":65'))
    with pytest.raises(ValueError, match="blocks of 64, 65 tokens"):
        read_recording(path, pytest.fail)
