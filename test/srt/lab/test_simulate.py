"""The simulator on traces made by code: rows, equal policies, corrupt lines, no slot lost."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path

import pytest
from lab import bases
from lab import command as simulate
from lab.costs import load_cost, split_memory
from lab.cpu_cache import EXAMPLE_COST, CpuCache, server_context
from lab.replay_cache import Replay
from lab.totals import Totals
from traces import Request, TraceError, read_trace

KEYS = {
    *("trace", "policy", "model", "kv_tokens", "state_slots", "admission", "requests"),
    *("input_tokens", "token_hit_rate", "request_hit_rate", "flops_saved", "lost_tokens"),
    *("evictions", "seconds"),
}


def chat_trace(seed: int, sessions: int = 20, requests: int = 160) -> list[dict[str, object]]:
    """Growing conversations under a shared system prompt, one id for each full block of 64."""
    rng = random.Random(seed)
    histories = [[1, 2, 3] for _ in range(sessions)]
    lengths = [64 * 3 for _ in range(sessions)]
    fresh = iter(range(10, 1 << 30))
    lines = []
    for i in range(requests):
        s = rng.randrange(sessions)
        if lengths[s] > 64 * 60:
            histories[s], lengths[s] = [1, 2, 3], 64 * 3

        def grow(tokens: int, s: int = s) -> list[int]:
            lengths[s] += tokens
            new = [next(fresh) for _ in range(lengths[s] // 64 - len(histories[s]))]
            histories[s].extend(new)
            return new

        grow(rng.randrange(40, 700))
        record: dict[str, object] = {
            "timestamp": i * 10,
            "session_id": str(s),
            "input_length": lengths[s],
            "hash_ids": list(histories[s]),
        }
        output = rng.randrange(20, 300)
        record |= {"output_length": output, "output_hash_ids": grow(output)}
        lines.append(record)
    return lines


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "chat.jsonl.xz"
    with lzma.open(path, "wt") as out:
        for record in chat_trace(1):
            out.write(json.dumps(record) + "\n")
    return path


def rows(trace: Path, capsys, *arguments: str) -> list[dict]:
    simulate.main(["--trace", str(trace), "--model", "Qwen3-Next-80B-A3B-Instruct", *arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_row_a_run_and_policy_1_is_stock_lru(trace, capsys, tmp_path):
    tight = ("--kv-tokens", "20000", "--state-slots", "16")
    out = tmp_path / "results.jsonl"
    policies = "lru,server:1,server:2,marconi:0.5,marconi-state:2"
    result = rows(trace, capsys, *tight, "--policy", policies, "--out", str(out))
    assert [row["policy"] for row in result] == policies.split(",")
    assert all(set(row) >= KEYS for row in result)
    assert out.read_text().splitlines() == [json.dumps(row) for row in result]
    lru, one, two, same, state = result
    for key in ("token_hit_rate", "request_hit_rate", "flops_saved", "requests", "input_tokens"):
        assert lru[key] == one[key]
        assert two[key] == same[key]
    assert two["token_hit_rate"] != lru["token_hit_rate"] != state["token_hit_rate"]
    assert sum(one["evictions"].values()) > 50 and one["unserved"] == 0
    assert all(row["fallbacks_to_lru"] == 0 for row in result)
    assert sum(one["lost_tokens"].values()) > 0
    assert len({row["token_hit_rate_bound"] for row in result}) == 1
    assert all(row["token_hit_rate"] < row["token_hit_rate_bound"] for row in result)


def test_admission_is_the_servers_option(trace, capsys):
    tight = ("--kv-tokens", "20000", "--state-slots", "16", "--policy", "lru,server:1,server:2")
    stock = rows(trace, capsys, *tight)
    judicious = rows(trace, capsys, *tight, "--admission", "judicious")
    for before, after in zip(stock, judicious, strict=True):
        assert (before["admission"], after["admission"]) == ("sglang", "judicious")
        assert before["states_taken_back"] == 0 < after["states_taken_back"]
        assert before["token_hit_rate"] != after["token_hit_rate"]
    assert judicious[0]["evictions"] == judicious[1]["evictions"] != {}, "lru is policy 1 then"
    with pytest.raises(SystemExit, match="--admission is 'all'; allowed are sglang, judicious"):
        rows(trace, capsys, *tight, "--admission", "all")


def test_with_room_for_all_every_repeated_block_of_a_state_hits(trace, capsys):
    (ample,) = rows(trace, capsys, "--memory-gib", "4000", "--policy", "server:1")
    assert ample["lost_tokens"]["state_evicted"] == ample["lost_tokens"]["kv_evicted"] == 0
    assert not ample["evictions"]
    (limited,) = rows(trace, capsys, "--memory-gib", "4000", "--policy", "lru", "--limit", "9")
    assert limited["requests"] == 9


def test_budget_is_split_by_the_ratio():
    cost = load_cost("Qwen3-Next-80B-A3B-Instruct")
    kv_tokens, states = split_memory(10, 1, cost)
    assert kv_tokens * cost.kv_bytes_per_token == pytest.approx(5 * 2**30, rel=1e-3)
    assert states * cost.state_bytes == pytest.approx(5 * 2**30, rel=0.02)


def losses(requests, **pools) -> tuple[dict[str, int], dict[str, int]]:
    """Lost blocks as the lab explains them, and as the server's own counters do."""
    with server_context(chunk=1):
        cache = CpuCache(1, **pools)
        replay = Replay(cache, 64)
        totals = Totals(EXAMPLE_COST, 1)
        for request in requests:
            totals.add(replay.serve(request))
        return totals.lost, cache.cache.stats.as_dict()["lost_tokens"]


def test_losses_of_the_lab_are_those_that_the_server_counts(trace):
    ours, counted = losses(read_trace(trace), kv_tokens=700, state_slots=12)
    assert ours["kv_evicted"] == counted["kv_evicted"] > 0
    # The server remembers 64 slots a hash, so a shorter end without a state escapes it.
    assert ours["never_admitted"] >= counted["never_admitted"]

    turns = [range(20), range(40), range(200, 210), [*range(20), 99, 100]]
    few_states = [Request(0, None, 64 * len(ids), 2, tuple(ids), ()) for ids in turns]
    ours, counted = losses(few_states, kv_tokens=100, state_slots=5)
    assert ours == {"state_evicted": 20, "kv_evicted": 0, "never_admitted": 0} == counted


@pytest.mark.parametrize("policy", [None, 1, 2])
def test_every_slot_is_free_or_in_the_tree_after_a_replay(trace, policy):
    with server_context(chunk=1):
        cache = CpuCache(policy, kv_tokens=300, state_slots=12)
        replay = Replay(cache, 64)
        for request in read_trace(trace):
            replay.serve(request)
            held = len(cache.cache.all_values_flatten())
            assert held + cache.allocator.available_size() == 300
            states = len(cache.cache.all_mamba_values_flatten())
            assert states + len(cache.requests.mamba_allocator.free_slots) == 12
        cache.cache.sanity_check()


def test_a_request_larger_than_the_cache_is_not_served_and_leaves_no_trace():
    with server_context(chunk=1):
        cache = CpuCache(2, kv_tokens=20, state_slots=8)
        replay = Replay(cache, 64)
        served = replay.serve(Request(0, None, 64 * 40, 5, tuple(range(40)), ()))
        assert not served.served and served.hit_tokens == 0
        assert (
            len(cache.requests.mamba_allocator.free_slots)
            + len(cache.cache.all_mamba_values_flatten())
            == 8
        )


def test_a_corrupt_line_is_named_and_the_rest_goes_on(tmp_path):
    good = json.dumps(chat_trace(2, requests=1)[0])
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{good}\n{{"timestamp": 1\n\n{{"timestamp": 1}}\n{good}\n')
    errors: list[TraceError] = []
    assert len(list(read_trace(path, on_error=errors.append))) == 2
    assert [f"{path}, line {n}" in str(e) for n, e in zip((2, 4), errors, strict=True)] == [
        True
    ] * 2


def test_an_unknown_policy_is_named(trace):
    with pytest.raises(SystemExit, match="'best'"):
        simulate.main(
            [
                "--trace",
                str(trace),
                "--model",
                "marconi-7b",
                "--memory-gib",
                "1",
                "--policy",
                "best",
            ]
        )


def test_a_base_without_its_environment_names_what_makes_it(trace, tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "REPOSITORY", tmp_path)
    with pytest.raises(SystemExit, match=r"--base is 0\.5\.4 but .*`make setup-fork` makes"):
        simulate.main(["--base", "0.5.4", "--trace", str(trace), "--model", "marconi-7b"])
    with pytest.raises(SystemExit):
        simulate.main(["--base", "0.5.5", "--trace", str(trace), "--model", "marconi-7b"])
