"""The paper's engine as a library: tuning, totals, reading, and refusing what makes no sense."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path

import numpy as np
import pytest
from paper import CORRECTED, PaperCache, PaperConfig, PaperModel
from paper.sequences import encode, shared_bytes, token_count
from paper.speed import CASES, conversations, measure
from paper.trace_file import TraceError, read_trace
from paper.tuner import ALPHAS

TINY = Path(__file__).parent / "golden_tiny" / "traces" / "tiny.jsonl.xz"
STATE = PaperModel().state_bytes


def noise(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    chance = random.Random(seed)
    return [(chance.choices(range(3), k=chance.randint(1, 8)), [0]) for _ in range(count)]


def tuned(multiplier: int, requests: int) -> PaperCache:
    config = PaperConfig("v2", 4 * STATE, bootstrap_multiplier=multiplier, fixes=CORRECTED)
    cache = PaperCache(config)
    for request in noise(requests):
        cache.serve(*request)
    return cache


def test_v2_tunes_once_at_its_window():
    cache = tuned(3, 60)
    summary, report = cache.summary(), cache.tuner
    assert report is not None
    assert report.window == summary.bootstrap_window == 3 * summary.first_evict_request
    assert report.at_request == report.window - 1
    assert tuple(trial.alpha for trial in report.trials) == ALPHAS
    assert summary.alpha == report.best_alpha == min(report.tied)


def test_each_trial_is_a_run_of_v3_from_an_empty_cache():
    report = tuned(3, 60).tuner
    assert report is not None
    for trial in report.trials[::5]:
        fresh = PaperCache(PaperConfig("v3", 4 * STATE, trial.alpha, fixes=CORRECTED))
        for request in noise(60)[: report.window]:
            fresh.serve(*request)
        totals = fresh.summary()
        assert trial.flops_saved == totals.flops_saved
        assert trial.token_hit_rate == totals.token_hit_rate


def test_only_the_last_500_requests_of_a_window_count():
    cache = tuned(150, 700)
    report = cache.tuner
    assert report is not None and report.window > 500
    trial = report.trials[0]
    fresh = PaperCache(PaperConfig("v3", 4 * STATE, trial.alpha, fixes=CORRECTED))
    work = noise(700)[: report.window]
    records = [fresh.serve(*request) for request in work][-500:]
    hits = sum(record.matched > 0 for record in records)
    assert trial.request_hit_rate == hits / 500
    model = PaperModel()
    assert trial.flops_saved == sum(model.prefill_flops(record.matched) for record in records)


def test_multiplier_one_and_short_traces_never_tune():
    assert tuned(1, 100).tuner is None
    assert tuned(50, 100).tuner is None
    assert tuned(1, 100).summary().alpha == 0.0


def test_totals_are_the_sum_of_the_records():
    cache = PaperCache(PaperConfig("v3", 6 * STATE, 0.5))
    records = [cache.serve(*request) for request in noise(80)]
    summary = cache.summary()
    assert summary.matched_tokens == sum(record.matched for record in records)
    assert summary.evicted == sum(len(record.evictions) for record in records)
    assert summary.evict_calls == sum(record.evict_called for record in records)
    assert summary.nodes == records[-1].nodes == len(cache.tree())
    assert summary.kv_tokens == sum(node.own_tokens for node in cache.tree())
    assert summary.max_tree_bytes == max(record.tree_bytes for record in records)
    assert 0 < summary.flops_saved_share < 1


def test_an_unused_cache_has_rates_of_zero():
    summary = PaperCache(PaperConfig("v1", 0)).summary()
    assert (summary.request_hit_rate, summary.token_hit_rate, summary.flops_saved_share) == (
        0,
        0,
        0,
    )


def test_details_change_no_decision():
    plain, detailed = (
        PaperCache(PaperConfig("v3", 5 * STATE, 0.5, details=details)) for details in (False, True)
    )
    for request in noise(100):
        a, b = plain.serve(*request), detailed.serve(*request)
        assert [v.path_tokens for v in a.evictions] == [v.path_tokens for v in b.evictions]
        assert all(v.path_hash is None and v.margin is None for v in a.evictions)
        assert all(len(v.path_hash or "") == 16 for v in b.evictions)


@pytest.mark.parametrize("policy", ["vllm", "v1", "v2", "v3"])
def test_empty_requests_are_served(policy):
    cache = PaperCache(PaperConfig(policy, 3 * STATE))
    assert cache.serve([], []).matched == 0
    assert cache.serve([1], []).matched == 0
    assert cache.serve([1], []).matched == 1


@pytest.mark.parametrize("bad", [[-1], [2**32], ["a"], [1.5], np.array([-1]), b"abc"])
def test_a_bad_token_is_refused_and_changes_nothing(bad):
    cache = PaperCache(PaperConfig("v3", STATE))
    before = cache.summary()
    with pytest.raises(ValueError, match="tokens"):
        cache.serve([1], bad)
    assert cache.summary() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "lru"},
        {"capacity_bytes": -1},
        {"capacity_bytes": float("nan")},
        {"alpha": -0.5},
        {"alpha": float("nan")},
        {"bootstrap_multiplier": 0},
        {"block_tokens": 0},
    ],
)
def test_a_bad_configuration_is_refused(wrong):
    with pytest.raises(ValueError):
        PaperConfig(**{"policy": "v3", "capacity_bytes": 1, **wrong})


def test_tokens_of_every_kind_encode_alike():
    words = [0, 1, 70_000, 2**32 - 1]
    expected = b"".join(word.to_bytes(4, "little") for word in words)
    for tokens in (words, tuple(words), np.array(words, np.uint32), np.array(words), expected):
        assert encode(tokens) == expected
    assert encode(np.array(words, ">u4")) == expected
    assert token_count(expected) == 4


def test_shared_bytes_are_whole_tokens():
    query, segment = encode([9, 1, 2, 3]), encode([1, 2, 7 + 3, 4])
    assert shared_bytes(query, 4, segment) == 8
    assert shared_bytes(query, 4, encode([1, 2, 3 + 256])) == 8
    assert shared_bytes(query, 4, encode([1, 2, 3])) == 12
    assert shared_bytes(query, 16, segment) == 0


def _lines(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_a_trace_is_read_plain_or_compressed(tmp_path):
    plain = tmp_path / "tiny.jsonl"
    plain.write_bytes(lzma.decompress(TINY.read_bytes()))
    requests = list(read_trace(TINY))
    assert len(requests) == 600
    assert requests == list(read_trace(plain))
    assert requests[0] == (encode([3]), encode([2, 3, 0, 3]))


GOOD = json.dumps({"input_tokens": [1, 2], "output_tokens": []})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: "),
        ("[]", "line 2: not a JSON object"),
        ('{"input_tokens": [1]}', "line 2: output_tokens is missing"),
        ('{"input_tokens": [-1], "output_tokens": []}', "line 2: tokens must be"),
        (
            '{"num_input_tokens": 2, "input_tokens": [1], "output_tokens": []}',
            "line 2: num_input_tokens is 2, but 1 tokens follow",
        ),
    ],
)
def test_a_corrupt_line_is_named(tmp_path, line, message):
    reader = read_trace(_lines(tmp_path, GOOD, line, GOOD))
    assert next(reader) == (encode([1, 2]), b"")
    with pytest.raises(TraceError, match=f"trace.jsonl: {message}"):
        next(reader)


def test_a_missing_or_cut_off_trace_is_named(tmp_path):
    with pytest.raises(TraceError, match=r"none\.jsonl: after line 0"):
        list(read_trace(tmp_path / "none.jsonl"))
    cut = tmp_path / "cut.jsonl.xz"
    cut.write_bytes(TINY.read_bytes()[:4000])
    with pytest.raises(TraceError, match=r"cut\.jsonl\.xz: "):
        list(read_trace(cut))


def test_the_speed_workload_is_the_same_every_time():
    first, second = conversations(100, 5, 1), conversations(100, 5, 1)
    for _ in range(50):
        for a, b in zip(next(first), next(second), strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.policy}-{case.path_tokens}")
def test_the_speed_table_measures_an_evicting_cache(case):
    small = measure(case, "as_published", nodes=200, requests=40, seed=1)
    assert small.evicted > 0
    assert 30 < small.mean_nodes < 400
    assert small.seconds > 0
