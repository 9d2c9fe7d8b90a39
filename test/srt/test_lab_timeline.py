"""Overlapping requests: times worked out by hand, locks and slots held, the order of turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cpu_cache import CpuCache, server_context
from lab.served import BlockCost
from lab.service import ServiceTimes
from lab.timeline import Timeline
from replay_cache import WORKING_STATES, Replay
from sglang.srt.marconi_utils import ModelCost
from test_simulate import chat_trace
from traces import Request

BLOCK = 64
COST = ModelCost(a=10, b=0, kv_bytes_per_token=16, state_bytes=1600)
#: A token takes a second to prefill and a second to decode.
SLOW = ServiceTimes(prefill_flops_per_second=10, decode_seconds_per_token=1)


@pytest.fixture(autouse=True)
def settings():
    with server_context(chunk=1):
        yield


def make_replay(**pools: object) -> Replay:
    return Replay(CpuCache(cost=BlockCost(COST, BLOCK), **pools), BLOCK)


def request(at: float, ids: range, output: int = 10, session: str | None = None) -> Request:
    return Request(at * 1000, session, len(ids) * BLOCK, output, tuple(ids), ())


def chat(gap_ms: float) -> list[Request]:
    records = chat_trace(3)
    return [
        Request(
            i * gap_ms,
            str(record["session_id"]),
            record["input_length"],
            record["output_length"],
            tuple(record["hash_ids"]),
            tuple(record["output_hash_ids"]),
        )
        for i, record in enumerate(records)
    ]


def test_prefill_is_one_server_and_decoding_does_not_hold_it():
    replay = make_replay()
    trace = [request(0, range(1)), request(0, range(10, 11)), request(300, range(20, 22))]
    served = list(Timeline(replay, COST, SLOW, concurrency=8).serve(trace))
    assert [round(one.ttft_seconds, 6) for one in served] == [64, 128, 128]


def test_a_hit_shortens_the_wait_and_chunks_are_computed_one_by_one():
    replay = make_replay(kv_tokens=4000)
    long = range(300)
    trace = [request(0, long), request(60000, long)]
    first, second = Timeline(replay, COST, SLOW, concurrency=8).serve(trace)
    assert first.ttft_seconds == 300 * BLOCK
    assert second.hit_tokens == 256 * BLOCK
    assert second.ttft_seconds == 300 * BLOCK - second.hit_tokens


def test_one_at_a_time_waits_for_the_whole_request_before():
    replay = make_replay()
    trace = [request(0, range(1), output=100), request(0, range(10, 11))]
    served = list(Timeline(replay, COST, SLOW, concurrency=1).serve(trace))
    assert [one.ttft_seconds for one in served] == [64, 64 + 100 + 64]


def test_the_clock_may_run_faster():
    trace = [request(0, range(1)), request(1000, range(10, 11))]
    fast = replace(SLOW, speed=1000)
    served = list(Timeline(make_replay(), COST, fast, concurrency=1).serve(trace))
    assert served[1].ttft_seconds == 64 + 10 + 64 - 1


def test_a_turn_waits_for_the_answer_before_it():
    trace = [
        request(0, range(1), output=500, session="a"),
        request(1, range(2), session="a"),
        request(2, range(10, 11), session="b"),
    ]
    served = list(Timeline(make_replay(), COST, SLOW, concurrency=8).serve(trace))
    by_length = {(one.input_tokens, one.hit_tokens): one for one in served}
    assert len(served) == 3
    assert by_length[128, 64].ttft_seconds == 64, "it arrives when the turn before has ended"


@pytest.mark.parametrize("policy", [None, 2])
def test_far_apart_requests_are_served_as_if_alone(policy):
    trace = chat(gap_ms=1e12)
    pools = {"policy": policy, "kv_tokens": 400, "state_slots": 14}
    alone = [make_serve(one) for one in map(make_replay(**pools).serve, trace)]
    timeline = Timeline(make_replay(**pools), COST, SLOW, concurrency=8)
    assert [make_serve(one) for one in timeline.serve(trace)] == alone
    assert any(hit for _, hit, _ in alone)


def make_serve(served) -> tuple[int, int, bool]:
    return served.input_tokens, served.hit_tokens, served.served


@pytest.mark.parametrize("policy", [None, 1, 2])
def test_running_requests_hold_slots_and_give_all_of_them_back(policy):
    trace = chat(gap_ms=20)
    replay = make_replay(policy=policy, kv_tokens=500, state_slots=14)
    pools, cache = replay.cache, replay.cache.cache
    timeline = Timeline(replay, COST, SLOW, concurrency=100)
    most = 0
    count = 0
    for served in timeline.serve(trace):
        count += 1
        assert served.ttft_seconds > 0
        running = timeline.running
        most = max(most, running)
        assert running * (WORKING_STATES + 1) <= 14 + WORKING_STATES + 1
        cached = len(cache.all_mamba_values_flatten())
        free = len(pools.requests.mamba_allocator.free_slots)
        assert cached + free + running * WORKING_STATES >= 14
        cache.sanity_check()
    assert count == len(trace) and most >= 2
    assert len(cache.all_values_flatten()) + pools.allocator.available_size() == 500
    assert len(cache.all_mamba_values_flatten()) + free_states(pools) == 14


def free_states(pools: CpuCache) -> int:
    return len(pools.requests.mamba_allocator.free_slots)


def test_what_can_never_fit_is_given_up_and_the_queue_goes_on():
    trace = [request(0, range(100)), request(1, range(200, 202))]
    replay = make_replay(kv_tokens=50, state_slots=8)
    served = list(Timeline(replay, COST, SLOW, concurrency=4).serve(trace))
    assert [one.served for one in served] == [False, True]
