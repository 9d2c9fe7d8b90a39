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
from lab.spec import WRITE_POLICIES
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.marconi.advice.load.arrivals import TraceArrivals
from sglang.srt.mem_cache.marconi.advice.load.scheduler import Scheduler
from sglang.srt.mem_cache.marconi.advice.load.schedules import SCHEDULES
from sglang.srt.mem_cache.marconi.advice.load.service import ServiceTimes
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
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
        assert stock["flops_saved"] - 0.05 < stock["seconds_saved"] < stock["flops_saved"]
    (alone,) = rows(capsys, trace, "--policy", "lru")
    assert alone["copied_bytes"] is None
    assert alone["seconds_saved"] == alone["flops_saved"] < saved["0.5"] < saved["100"]


def test_bad_options_are_refused(trace):
    for options, named in (
        (("--host-share", "0"), "--host-share is 0"),
        (("--host-share", "1", "--host-gbps", "nan"), "--host-gbps is nan"),
        (("--host-share", "1", "--engine", "shadow"), "--host-share is 1 but --engine is shadow"),
    ):
        with pytest.raises(SystemExit, match=named):
            simulate.main(["--trace", str(trace), *MODEL, *TIGHT, *options])


@pytest.fixture
def hosted() -> Iterator[Replay]:
    with server_context(chunk=1):
        cpu = CpuCache(3, cost=BlockCost(COST, BLOCK), lower_tier=LowerTier.HOST)
        tier = HostTier(cpu, 1000, 100, "write_through")
        yield Replay(cpu, BLOCK, tier=tier, load_rate=100.0)
        cpu.cache.sanity_check()


def test_a_request_waits_for_what_is_loaded(hosted: Replay):
    """Four blocks of 64 tokens and a state, at 100 bytes a second; a token takes a second."""

    def request(tokens: int) -> Request:
        return Request(0.0, None, tokens, 1, tuple(range(tokens // BLOCK)), ())

    def ttft(tokens: int) -> float:
        service = ServiceTimes(prefill_flops_per_second=10, decode_seconds_per_token=0)
        scheduler = Scheduler(
            *(hosted, COST, service), running=1, schedule=SCHEDULES["fcfs"], block=BLOCK
        )
        (served,) = scheduler.serve(TraceArrivals([request(tokens)]))
        assert served.served and served.ttft_seconds is not None
        return served.ttft_seconds

    assert ttft(256) == 256
    hosted.cache.cache.evict(EvictParams(num_tokens=100, mamba_num=100))
    assert hosted.cache.allocator.available_size() == 512
    bytes_loaded = 4 * BLOCK * 16 + 1600
    assert ttft(320) == 64 + bytes_loaded / 100
    assert ttft(320 + 64) == 64
