"""The trace lab on this release's cache: rows, bounds, policies, what it refuses."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import lab_v0_5_4
import pytest
from build_fork import REPOSITORY
from cpu_cache_v0_5_4 import CpuCache
from lab import command as simulate
from lab.costs import load_cost
from lab.run import check_spec, policy_context
from lab.run import simulate as run
from lab.spec import RunSpec
from test_fork_cache import sequence
from traces import Request

MODEL = "Qwen3-Next-80B-A3B-Instruct"
BLOCK = 64


def conversations(seed: int, sessions: int = 24, requests: int = 300) -> list[dict[str, object]]:
    """Growing histories under one of two system prompts, some prompts shorter than a block."""
    rng = random.Random(seed)
    fresh = iter(range(100, 1 << 30))
    histories = [(64 * 4, [s % 2, 10, 11, 12]) for s in range(sessions)]
    lines = []
    for number in range(requests):
        session = rng.randrange(sessions)
        length, ids = histories[session]
        if length > 64 * 70 or rng.random() < 0.03:
            length, ids = rng.choice([(64 * 4, [session % 2, 10, 11, 12]), (20, [])])
        grown = []
        for more in (rng.randrange(30, 600), rng.randrange(0, 250)):
            length += more
            ids = [*ids, *(next(fresh) for _ in range(length // BLOCK - len(ids)))]
            grown.append((length, ids))
        (asked, prompt), (length, ids) = grown
        histories[session] = length, ids
        lines.append(
            {
                "timestamp": 10 * number,
                "session_id": str(session),
                "input_length": asked,
                "output_length": length - asked,
                "hash_ids": prompt,
                "output_hash_ids": ids[len(prompt) :],
            }
        )
    return lines


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "conversations.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in conversations(1)))
    return path


@pytest.fixture
def spec(trace) -> RunSpec:
    return RunSpec(str(trace), "lru", MODEL, 64 * 400, 40, base="0.5.4")


def rows(trace: Path, capsys, *arguments: str) -> dict[str, dict]:
    common = ("--base", "0.5.4", "--trace", str(trace), "--model", MODEL)
    assert simulate.main([*common, *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {row["policy"]: row for row in map(json.loads, lines)}


def test_every_policy_of_marconi_runs_and_what_it_hits_and_loses_adds_up(trace, capsys):
    policies = (
        *("lru", "lru-python", "server:1", "server:2", "server:3", "marconi:0.5"),
        *("marconi-state:1", "superseded", "seglen", "gdsf", "clairvoyant", "infinite"),
    )
    pools = ("--kv-tokens", str(64 * 400), "--state-slots", "40")
    found = rows(trace, capsys, "--policy", ",".join(policies), *pools)
    assert set(found) == set(policies)
    bound = found["infinite"]["token_hit_rate_bound"]
    for policy, row in found.items():
        assert row["base"] == "0.5.4" and row["requests"] == 300 and not row["unserved"], policy
        assert row["token_hit_rate_bound"] == pytest.approx(bound), policy
        assert 0 < row["token_hit_rate"] <= bound and row["fallbacks_to_lru"] == 0, policy
    lost = found["infinite"]["lost_tokens"]
    assert lost["state_evicted"] == lost["kv_evicted"] == 0
    same = ("token_hit_rate", "flops_saved", "lost_tokens", "by_length")
    for one, other in (("lru", "lru-python"), ("lru", "server:1"), ("marconi:0.5", "server:2")):
        assert all(found[one][name] == found[other][name] for name in same), (one, other)
    assert found["server:1"]["evictions"]["state:state_only"] > 100
    assert found["marconi:0.5"]["token_hit_rate"] != found["lru"]["token_hit_rate"]
    assert found["clairvoyant"]["token_hit_rate"] > found["lru"]["token_hit_rate"] + 0.02


def test_sizes_are_found_by_this_base_and_kept(trace, capsys, tmp_path):
    arguments = ("--policy", "lru,infinite", "--capacity", "middle", "--cache", str(tmp_path))
    found = rows(trace, capsys, *arguments)
    assert found["lru"]["capacity"] == "middle"
    share = found["lru"]["flops_saved"] / found["infinite"]["flops_saved"]
    assert share == pytest.approx(0.66, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "cap:2"}, r"--policy is 'cap:2', which SGLang 0\.5\.4 does not have"),
        ({"policy": "slru"}, r"--policy is 'slru', which SGLang 0\.5\.4 does not have"),
        ({"policy": "server:2:auto"}, "--marconi-eff-weight is 'auto'; allowed is a finite"),
        ({"concurrency": 2}, "--concurrency is 2; allowed with --base 0.5.4 is to leave it out"),
        ({"admission": "judicious"}, "--admission is 'judicious'; allowed .* is sglang"),
        ({"engine": "shadow"}, "--base is 0.5.4 but --engine is shadow; allowed is"),
        ({"engine": "paper"}, "--base is 0.5.4 but --engine is paper; allowed is"),
        ({"memory": "elastic"}, "--memory is elastic but --base is 0.5.4, which has no unified"),
    ],
)
def test_what_this_base_does_not_do_is_refused(spec, changes, message):
    with pytest.raises(ValueError, match=message):
        check_spec(RunSpec(**{**vars(spec), **changes}))


def test_a_slot_that_is_lost_ends_the_run(spec, monkeypatch):
    monkeypatch.setattr(CpuCache, "free_state", lambda self, state: None)
    with pytest.raises(RuntimeError, match="of 400 KV slots and 40 states 400 and"):
        run(spec)


def test_losses_are_told_apart_by_what_is_missing(spec):
    """One request's prompt again and again, while the cache loses what it needs."""
    prompt = tuple(sequence(6, 1))
    request = Request(0.0, "s", BLOCK * 6 + 5, 1, prompt, ())
    context = policy_context(spec, load_cost(MODEL))
    with lab_v0_5_4.open_world(spec, context) as world:
        cache = world._cache.cache

        def again() -> tuple[int, int, int, int]:
            (served,) = world.serve([request])
            lost = served.lost
            found = (served.hit_tokens // BLOCK, lost.state_evicted, lost.kv_evicted)
            return (*found, lost.never_admitted)

        assert again() == (0, 0, 0, 0)
        assert again() == (6, 0, 0, 0)
        cache.evict_mamba(1)
        assert again() == (0, 0, 6, 0)
        longer = Request(1.0, "s", BLOCK * 9, 1, (*prompt, 7, 8, 9), ())
        (served,) = world.serve([longer])
        assert served.hit_tokens == BLOCK * 6
        cache.evict_mamba(1)
        assert again() == (0, 6, 0, 0)


def test_an_interpreter_with_another_release_goes_on_in_this_ones(trace):
    python = REPOSITORY / ".venv" / "bin" / "python"
    command = [python, REPOSITORY / "benchmark" / "marconi" / "simulate.py", "--base", "0.5.4"]
    command += ["--trace", trace, "--model", MODEL, "--policy", "lru", "--limit", "20"]
    command += ["--kv-tokens", "6400", "--state-slots", "9"]
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["base"], row["requests"]) == ("0.5.4", 20)
