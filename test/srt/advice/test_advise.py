"""The advice: the best of its own table, stock where nothing is better, a command that runs it."""

from __future__ import annotations

import json
import random
from array import array

import advise
import pytest
from sglang.srt.marconi_utils import cost_by_name
from sglang.srt.mem_cache.marconi.advice import command as product
from sglang.srt.mem_cache.marconi.advice.host_tier import HostSpeeds, advise_host, host_text
from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest
from sglang.srt.mem_cache.marconi.advice.replay import POLICY_ROWS, Advice, Option
from sglang.srt.mem_cache.marconi.advice.replay import advise as give_advice
from sglang.srt.mem_cache.marconi.costs.kv_types import with_kv_type
from sglang.srt.mem_cache.marconi.tuning.block_hashes import BlockHasher

MODEL = "Qwen3-Next-80B-A3B-Instruct"


def sessions(count: int, turns: int) -> list[list[int]]:
    return [
        [session * 1000 + i for i in range(20 + 8 * turn)]
        for turn in range(turns)
        for session in range(count)
    ]


def uneven(count: int, requests: int) -> list[list[int]]:
    """Sessions that grow in no order."""
    rng = random.Random(2)
    turns = [0] * count
    prompts = []
    for _ in range(requests):
        session = rng.randrange(count)
        prompts.append([session * 1000 + i for i in range(20 + 8 * turns[session])])
        turns[session] += 1
    return prompts


def hashed(prompts: list[list[int]]) -> list[HashedRequest]:
    hasher = BlockHasher(1)
    return [
        HashedRequest(64 * len(ids), array("Q", hasher.extend(0, 0, ids).tobytes()), array("Q", []))
        for ids in prompts
    ]


def all_saved(advice: Advice) -> list[float]:
    return [saved for row in advice.saved.values() for saved in row.values()]


def test_the_best_of_the_table_is_advised():
    cost = cost_by_name(MODEL)
    advice = give_advice(hashed(sessions(30, 8)), cost, 3 * 2**30, block_tokens=64)
    assert advice.best.saved == max(all_saved(advice))
    assert advice.best.saved == advice.saved[advice.best.policy][advice.best.memory]
    assert advice.best.ratio is None and advice.best.policy == "policy 3 (value)"
    assert advice.static.ratio is not None and advice.static.policy.startswith("policy 3")
    assert advice.static.saved > advice.stock.saved + 0.1
    flags = "--enable-unified-memory --marconi-evict-policy 3"
    assert product.command(advice.best, "m").endswith(flags)
    assert "Where SGLang cannot serve unified memory" in product.summary(advice, "m")


def test_admission_and_the_path_cap_are_tried_and_can_be_left_out():
    requests, cost = hashed(uneven(20, 200)), cost_by_name(MODEL)
    advice = give_advice(requests, cost, 3 * 2**30, block_tokens=64, ratios=[0.9])
    assert set(advice.saved) == set(POLICY_ROWS)
    capped = "stock LRU, 2 states a path"
    assert advice.saved[capped]["0.9"] != advice.saved["stock LRU"]["0.9"]
    alone = give_advice(requests, cost, 3 * 2**30, block_tokens=64, ratios=[0.9], rows=[capped])
    assert set(alone.saved) == {"stock LRU", capped}
    assert product.command(alone.best, "m").endswith("--mamba-max-states-per-path 2")
    assert all(advice.saved[name] == saved for name, saved in alone.saved.items())
    with pytest.raises(ValueError, match="allowed are stock LRU"):
        give_advice(requests, cost, 3 * 2**30, block_tokens=64, rows=["best"])


def test_stock_is_advised_where_nothing_is_evicted():
    cost = cost_by_name(MODEL)
    advice = give_advice(hashed(sessions(3, 3)), cost, 20 * 2**30, block_tokens=64)
    assert advice.best == advice.static == advice.stock and advice.stock.ratio == 0.9
    assert product.command(advice.best, "m").endswith("--mamba-full-memory-ratio 0.9")


@pytest.mark.parametrize(("requests", "gib"), [([], 3.0), (sessions(3, 3), 0.01)])
def test_what_cannot_be_advised_on_is_refused(requests, gib):
    with pytest.raises(ValueError, match=r"allowed is 1 or more|too little"):
        give_advice(hashed(requests), cost_by_name(MODEL), gib * 2**30, block_tokens=64)


def test_the_command_line_prints_the_curve_and_the_command(tmp_path, capsys):
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "timestamp": i * 1000,
                    "session_id": str(ids[0]),
                    "input_length": 64 * len(ids),
                    "output_length": 1,
                    "hash_ids": ids,
                }
            )
            + "\n"
            for i, ids in enumerate(sessions(30, 5))
        )
    )
    assert advise.main(["--trace", str(path), "--model", MODEL, "--memory-gib", "3"]) == 0
    printed = capsys.readouterr().out
    assert "elastic" in printed and "as SGLang does by default" in printed
    assert f"launch_server --model {MODEL}" in printed
    assert "TTFT" not in printed and "give --tflops" in printed
    speed = ["--tflops", "100", "--running", "4", "--policy", "policy 3 (value)"]
    advise.main(["--trace", str(path), "--model", MODEL, "--memory-gib", "3", *speed])
    printed = capsys.readouterr().out
    assert printed.count("150 requests that arrive in 149 s, 4 at a time, 100 TFLOP/s") == 3
    with pytest.raises(SystemExit, match="No such file"):
        advise.main(["--trace", "/nowhere", "--model", MODEL, "--memory-gib", "3"])


def test_smaller_kv_holds_more_and_is_named_in_the_command(tmp_path, capsys):
    prompts = [[session * 1000 + i for i in range(200)] for session in range(30)] * 3
    lines = [
        {"timestamp": i * 1000, "input_length": 64 * len(ids), "output_length": 1, "hash_ids": ids}
        for i, ids in enumerate(prompts)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    saved = {}
    for dtype in ("auto", "bfloat16", "fp8_e4m3"):
        words = ["--trace", str(path), "--model", MODEL, "--memory-gib", "12", "--json"]
        assert advise.main([*words, "--kv-cache-dtype", dtype]) == 0
        advice = json.loads(capsys.readouterr().out)
        saved[dtype] = advice["stock"]["saved"]
        named = f"--model {MODEL} --kv-cache-dtype {dtype}" in advice["command"]
        assert named == (dtype != "auto")
    assert saved["auto"] == saved["bfloat16"] < saved["fp8_e4m3"] - 0.3


def test_kv_of_an_unknown_part_of_the_model_has_no_other_type():
    paper = cost_by_name("marconi-7b")
    assert with_kv_type(paper, "auto") is paper
    with pytest.raises(ValueError, match=r"is fp8_e4m3, but .* allowed with it is auto"):
        with_kv_type(paper, "fp8_e4m3")


SPEEDS = HostSpeeds(100e12, 50e9)


def test_the_host_tier_that_saves_most_is_advised():
    options = {"block_tokens": 64, "ratios": (0.5,), "rows": tuple(POLICY_ROWS)}
    found = advise_host(
        *(hashed(uneven(30, 300)), cost_by_name(MODEL), 3 * 2**30),
        **options,
        host_ratios=(0.5, 4.0),
        speeds=SPEEDS,
    )
    small, large = found
    assert large.stock.saved > small.stock.saved + 0.05, "a larger host gives more back"
    for one in found:
        assert one.best.saved == max(option.saved for option in one.tried)
        assert {(o.policy, o.write_policy) for o in one.tried} == {
            (policy, write_policy)
            for policy in ("stock LRU", "policy 3 (value)")
            for write_policy in ("write_through", "write_back")
        }
    assert small.best.policy == "policy 3 (value)"
    assert small.best.saved > small.stock.saved + 0.05
    without = Option("stock LRU", 0.9, 0.123, 0.1)
    printed = host_text(found, SPEEDS, without)
    assert printed.endswith("no host tier        12.3 (0.9)")
    assert f"{100 * small.best.saved:.1f} ({small.best.ratio:g})" in printed
    assert "100 TFLOP/s, copies at 50 GB/s" in printed


def test_a_copy_costs_what_it_takes():
    cost, requests = cost_by_name(MODEL), hashed(uneven(30, 300))
    options = {"block_tokens": 64, "ratios": (), "rows": (), "host_ratios": (4.0,)}
    fast, slow = (
        advise_host(requests, cost, 3 * 2**30, **options, speeds=HostSpeeds(100e12, rate))[0].stock
        for rate in (50e9, 5e9)
    )
    assert fast.token_hit_rate == slow.token_hit_rate
    assert fast.saved > slow.saved + 0.01


def test_the_command_line_sizes_the_host_tier(tmp_path, capsys):
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": i * 1000, "session_id": str(ids[0]), "input_length": 64 * len(ids)}
        | {"output_length": 1, "hash_ids": ids}
        for i, ids in enumerate(uneven(20, 120))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--trace", str(path), "--model", MODEL, "--memory-gib", "3", "--host-ratio", "1,4"]
    with pytest.raises(SystemExit, match="--host-ratio is given without --tflops"):
        advise.main(words)
    words += ["--tflops", "100", "--policy", "policy 3 (value)"]
    assert advise.main(words) == 0
    printed = capsys.readouterr().out
    assert "Best with a host tier of 1 times the device's memory: policy 3 (value) under" in printed
    assert "--enable-hierarchical-cache --hicache-ratio 4 --hicache-write-policy write_" in printed
    assert advise.main([*words, "--json"]) == 0
    small, large = json.loads(capsys.readouterr().out)["host_tier"]
    assert (small["host_ratio"], large["host_ratio"]) == (1, 4)
    assert "--hicache-ratio 1 " in small["command"] and small["best"]["saved"] > 0
    slow = [*words, "--host-gbps", "0.001", "--policy", "policy 3, judicious"]
    assert advise.main(slow) == 0
    printed = capsys.readouterr().out
    assert "A host tier of 4 times the device's memory is not worth it" in printed
    assert "Not tried above a host tier: policy 3, judicious." in printed
    for flag, value, named in (
        ("--host-ratio", "1e308", "up to 1000"),
        ("--host-ratio", "1,", "up to 1000"),
        ("--host-ratio", "0", "> 0"),
        ("--tflops", "1e300", "to 1000000"),
        ("--host-gbps", "nan", "0.001"),
    ):
        with pytest.raises(SystemExit):
            advise.main([*words, flag, value])
        assert named in capsys.readouterr().err
