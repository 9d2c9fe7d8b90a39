"""The lab's host tier: what it brings back is hit and paid for, and policy 1 is stock there too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import command as simulate
from lab.cpu_cache import CpuCache, server_context
from lab.host_tier import HostTier
from lab.replay_cache import Replay
from lab.served import BlockCost
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.marconi.advice.load.arrivals import TraceArrivals
from sglang.srt.mem_cache.marconi.advice.load.scheduler import Scheduler
from sglang.srt.mem_cache.marconi.advice.load.schedules import SCHEDULES
from sglang.srt.mem_cache.marconi.advice.load.service import ServiceTimes
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
from sglang.srt.mem_cache.marconi.tuning.hosted_cache import WRITE_POLICIES
from test_simulate import chat_trace
from traces import Request

MODEL = ("--model", "Qwen3-Next-80B-A3B-Instruct")
TIGHT = ("--kv-tokens", "20000", "--state-slots", "16")
BLOCK = 64
COST = ModelCost(a=10, b=0, kv_bytes_per_token=16, state_bytes=1600)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "chat.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in chat_trace(1)))
    return path


def rows(capsys: pytest.CaptureFixture[str], trace: Path, *options: str) -> list[dict]:
    assert simulate.main(["--trace", str(trace), *MODEL, *TIGHT, *options]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("write_policy", WRITE_POLICIES)
def test_more_comes_back_from_a_larger_host_and_policy_1_is_stock(trace, capsys, write_policy):
    options = ("--policy", "lru,server:1,server:3", "--host-write-policy", write_policy)
    saved = {}
    for share in ("0.5", "100"):
        stock, ours, value = rows(capsys, trace, *options, "--host-share", share)
        for name in ("flops_saved", "token_hit_rate", "loaded_tokens", "copied_bytes"):
            assert stock[name] == ours[name]
        assert value["fallbacks_to_lru"] == 0
        saved[share] = stock["flops_saved"]
        assert 0 < stock["loaded_tokens"] * 24576 <= stock["copied_bytes"]["loaded"]
        lost = {row["policy"]: row["flops_saved"] - row["seconds_saved"] for row in (stock, value)}
        assert 0 < lost["lru"] < (0.2 if write_policy == "write_back" else 0.05)
        if write_policy == "write_back":
            assert value["copied_bytes"]["written"] < 0.7 * stock["copied_bytes"]["written"]
            assert lost["server:3"] < lost["lru"], "nobody waits for copies of no use"
    (alone,) = rows(capsys, trace, "--policy", "lru")
    assert alone["copied_bytes"] is None
    assert alone["seconds_saved"] == alone["flops_saved"] < saved["0.5"] < saved["100"]


def test_bad_options_are_refused(trace):
    for options, named in (
        (("--host-share", "0"), "--host-share is 0"),
        (("--host-share", "1", "--host-gbps", "nan"), "--host-gbps is nan"),
        (("--host-share", "1", "--engine", "paper"), "--host-share is 1 but --engine is paper"),
        (
            ("--host-share", "1", "--engine", "shadow", "--memory", "elastic", "--policy", "value"),
            "--host-share is 1 but --memory is elastic",
        ),
    ):
        with pytest.raises(SystemExit, match=named):
            simulate.main(["--trace", str(trace), *MODEL, *TIGHT, *options])


@pytest.fixture
def hosted(request: pytest.FixtureRequest) -> Iterator[Replay]:
    with server_context(chunk=1):
        cpu = CpuCache(1, cost=BlockCost(COST, BLOCK), lower_tier=LowerTier.HOST)
        tier = HostTier(cpu, 1000, 100, request.param)
        yield Replay(cpu, BLOCK, tier=tier, copy_rate=100.0)
        cpu.cache.sanity_check()


def serve(replay: Replay, session: int, tokens: int) -> float:
    """Seconds until the first token of a request served alone; a token takes a second."""
    blocks = range(1000 * session, 1000 * session + tokens // BLOCK)
    scheduler = Scheduler(
        *(replay, COST, ServiceTimes(prefill_flops_per_second=10, decode_seconds_per_token=0)),
        running=1,
        schedule=SCHEDULES["fcfs"],
        block=BLOCK,
    )
    arrivals = TraceArrivals([Request(0.0, None, tokens, 1, tuple(blocks), ())])
    (served,) = scheduler.serve(arrivals)
    assert served.served and served.ttft_seconds is not None
    return served.ttft_seconds


@pytest.mark.parametrize("hosted", ["write_through"], indirect=True)
def test_a_request_waits_for_what_is_loaded(hosted: Replay):
    """Four blocks of 64 tokens and a state, at 100 bytes a second."""
    assert serve(hosted, 0, 256) == 256
    hosted.cache.cache.evict(EvictParams(num_tokens=100, mamba_num=100))
    assert hosted.cache.allocator.available_size() == 512
    bytes_loaded = 4 * BLOCK * 16 + 1600
    assert serve(hosted, 0, 320) == 64 + bytes_loaded / 100
    assert serve(hosted, 0, 320 + 64) == 64


@pytest.mark.parametrize("hosted", ["write_back", "write_through"], indirect=True)
def test_who_needs_the_place_waits_for_what_is_written_back(hosted: Replay):
    """Under ``write_through`` it was copied before, and nobody waited."""
    serve(hosted, 0, 256)
    tier, tokens = hosted.tier, BLOCK * (int(hosted.cache.allocator.available_size()) + 1)
    assert tier is not None
    assert (tier.written.kv == 0) == (tier.write_policy == "write_back")
    waited = serve(hosted, 1, tokens) - tokens
    written_back = 4 * BLOCK * 16 + 1600
    assert waited == pytest.approx(written_back / 100 if tier.write_policy == "write_back" else 0)


@pytest.mark.parametrize("hosted", ["write_back"], indirect=True)
def test_all_that_is_waited_for_is_charged_to_some_prefill(hosted: Replay):
    """Also what a request writes back after its last chunk, which the next one's waits for."""
    requests = [
        Request(0.0, None, 8192, 200 * BLOCK, tuple(range(1000 * n, 1000 * n + 128)), ())
        for n in range(8)
    ]
    scheduler = Scheduler(
        *(hosted, COST, ServiceTimes(prefill_flops_per_second=10, decode_seconds_per_token=0)),
        running=1,
        schedule=SCHEDULES["fcfs"],
        block=BLOCK,
        chunk_tokens=1024,
    )
    served = list(scheduler.serve(TraceArrivals(requests)))
    assert all(one.served for one in served)
    copied = sum(one.copy_seconds for one in served)
    last = served[-1].ended_seconds
    assert copied > 100 and last is not None
    # What the last one writes back nobody waits for.
    in_time = last - sum(one.input_tokens for one in served)
    assert copied - served[-1].copy_seconds <= in_time <= copied
