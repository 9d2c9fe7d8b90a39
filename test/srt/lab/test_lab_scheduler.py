"""A server under load: times worked out by hand, locks and slots held, who goes first."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace
from types import SimpleNamespace

import pytest
from lab.arrivals import ClosedArrivals
from lab.cpu_cache import CpuCache, server_context
from lab.replay_cache import WORKING_STATES, Replay
from lab.served import BlockCost
from lab.shadow_world import ShadowWorld
from policies.shared import SharedOrderPolicy
from sglang.srt.managers import schedule_policy
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.marconi.advice.load.arrivals import Arrival, Arrivals, TraceArrivals
from sglang.srt.mem_cache.marconi.advice.load.scheduler import LoadedCache, Scheduler
from sglang.srt.mem_cache.marconi.advice.load.schedules import MOST_MATCHED, SCHEDULES, Waiting
from sglang.srt.mem_cache.marconi.advice.load.served import GRID_TOKENS, Served
from sglang.srt.mem_cache.marconi.advice.load.service import ServiceTimes
from sglang.srt.mem_cache.marconi.eviction.lru import LruPolicy
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
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


def make_shadow(policy: EvictionPolicy | None = None, **pools: int) -> ShadowWorld:
    shape = ShadowShape(
        block_tokens=1,
        kv_blocks=pools.get("kv_tokens", 512),
        state_slots=pools.get("state_slots", 16),
        chunk=8192 // BLOCK,
        track=256 // BLOCK,
    )
    return ShadowWorld(ShadowCache(shape, policy or LruPolicy()), BLOCK)


def scheduler(cache: LoadedCache, running: int = 8, schedule: str = "fcfs", **rest) -> Scheduler:
    return Scheduler(
        cache,
        COST,
        rest.pop("service", SLOW),
        running=running,
        schedule=SCHEDULES[schedule],
        block=BLOCK,
        **rest,
    )


def serve(cache: LoadedCache, arrivals: Arrivals | list[Request], **rest) -> list[Served]:
    if isinstance(arrivals, list):
        arrivals = TraceArrivals(arrivals)
    return list(scheduler(cache, **rest).serve(arrivals))


@pytest.fixture(params=["real", "shadow"])
def make(request):
    return make_replay if request.param == "real" else make_shadow


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


def test_what_waits_together_is_one_batch_and_decoding_does_not_hold_it(make):
    trace = [request(0, range(1)), request(0, range(10, 11)), request(300, range(20, 22))]
    served = serve(make(), trace)
    assert [round(one.ttft_seconds, 6) for one in served] == [128, 128, 128]
    assert [one.wait_seconds for one in served] == [0, 0, 0]


def test_a_hit_shortens_the_wait_and_chunks_are_computed_one_by_one(make):
    long = range(300)
    first, second = serve(make(kv_tokens=4000), [request(0, long), request(60000, long)])
    assert first.ttft_seconds == 300 * BLOCK
    assert second.hit_tokens == 256 * BLOCK
    assert second.ttft_seconds == 300 * BLOCK - second.hit_tokens


def test_requests_share_the_chunk_and_the_last_goes_on_in_the_next(make):
    trace = [request(0, range(3)), request(0, range(10, 13))]
    served = serve(make(), trace, chunk_tokens=4 * BLOCK)
    assert [one.ttft_seconds for one in served] == [4 * BLOCK, 6 * BLOCK]


def test_a_batch_costs_something_whatever_it_holds(make):
    slow = replace(SLOW, batch_seconds=5)
    served = serve(make(), [request(0, range(1)), request(0, range(10, 11))], service=slow)
    assert [one.ttft_seconds for one in served] == [133, 133]


def test_one_at_a_time_waits_for_the_whole_request_before(make):
    trace = [request(0, range(1), output=100), request(0, range(10, 11))]
    served = serve(make(), trace, running=1)
    assert [one.ttft_seconds for one in served] == [64, 64 + 99 + 64]
    assert [one.wait_seconds for one in served] == [0, 64 + 99]


def test_the_clock_may_run_faster(make):
    trace = [request(0, range(1)), request(1000, range(10, 11))]
    served = serve(make(), TraceArrivals(trace, speed=1000), running=1)
    assert served[1].ttft_seconds == 64 + 9 + 64 - 1


def test_a_turn_waits_for_the_answer_before_it(make):
    trace = [
        request(0, range(1), output=500, session="a"),
        request(1, range(2), session="a"),
        request(2, range(10, 11), session="b"),
    ]
    served = serve(make(), trace)
    by_length = {(one.input_tokens, one.hit_tokens): one for one in served}
    assert len(served) == 3
    assert by_length[128, 64].ttft_seconds == 64, "it arrives when the turn before has ended"


def loop(*sessions: list[range], **rest) -> ClosedArrivals:
    """A closed loop over sessions, each given by the prompts of its turns."""
    turns = [request(0, ids, session=str(name)) for name, ids in enumerate(sessions) for ids in ids]
    return ClosedArrivals(turns, **rest)


def test_a_closed_loop_keeps_so_many_sessions_at_a_time(make):
    grown = [range(1), range(2), range(3)]
    other = [range(100, 101), range(100, 102)]
    last = [range(200, 201)]
    served = serve(make(), loop(grown, other, last, active=2), running=1)
    # Nobody is answered and back in the queue before the one who waits is served.
    assert [one.session for one in served] == ["0", "1", "0", "1", "0", "2"]
    assert [one.wait_seconds > 0 for one in served] == [False, *[True] * 5]


def test_think_times_belong_to_the_turn():
    def thought(active: int) -> dict[str, float]:
        sessions = [[range(1), range(2)], [range(100, 101), range(100, 102)]]
        served = serve(make_shadow(), loop(*sessions, active=active, think=1e6), running=1)
        by_turn = {(one.session, one.input_tokens): one for one in served}
        return {
            name: round(by_turn[name, 128].came_seconds - by_turn[name, 64].ended_seconds, 3)
            for name in "01"
        }

    assert thought(1) == thought(2) and len(set(thought(1).values())) == 2


@pytest.mark.parametrize(
    ("schedule", "order"),
    [
        ("fcfs", [2, 3, 4, 5]),
        ("lpm", [4, 5, 2, 3]),
        ("shortest-prefill-first", [3, 4, 5, 2]),
        ("hrrn", [2, 3, 4, 5]),
        ("priority", [5, 2, 3, 4]),
    ],
)
def test_who_waits_goes_in_the_order_of_the_schedule(make, schedule, order):
    trace = [
        request(0, range(300, 301), session="y"),
        request(1000, range(12), output=10_000),  # all others come while it decodes
        request(2000, range(100, 112)),
        request(2001, range(200, 202)),
        request(2002, range(14)),
        request(2003, range(300, 305), session="y"),
    ]
    served = serve(make(), trace, running=1, schedule=schedule)
    assert [one.index for one in served] == [0, 1, *order]


def waiting(rng: random.Random) -> list[Waiting]:
    """A queue whose requests begin alike, with or without their prefix cached."""
    queue = []
    for index in range(rng.randrange(1, 12)):
        ids = [rng.randrange(2) for _ in range(rng.randrange(1, 90))]
        turn = Arrival(index, str(index), rng.randrange(2), request(0, range(1)))
        whole = Request(0, None, len(ids), 5, tuple(ids), ())
        one = Waiting(replace(turn, request=whole), since=float(index), prefilled=index * 40)
        one.matched = min(rng.choice([0, 0, 10, 33, 60]), len(ids) - 1)
        queue.append(one)
    rng.shuffle(queue)
    return queue


class MatchesAsToldCache:
    """Stands for the tree in SGLang's scheduling policy, which asks it for matches alone."""

    disable = False

    def supports_fast_match_prefix(self) -> bool:
        return True


@pytest.mark.parametrize("schedule", ["lpm", "hrrn", "shortest-prefill-first", "priority"])
def test_orders_are_those_of_sglang(schedule, monkeypatch):
    """One token a block, so that what waiting requests share is compared token by token."""
    memory = SimpleNamespace(radix_eviction_policy="lru")
    monkeypatch.setattr(schedule_policy, "get_memory", lambda: memory)
    disagg = SimpleNamespace(disaggregation_mode="null")
    monkeypatch.setattr(schedule_policy, "get_disagg", lambda: disagg)

    def match(req, tree_cache, *_args, **_kwargs):
        req.prefix_len = req.num_matched_prefix_tokens
        return SimpleNamespace(device_prefix_len=req.prefix_len)

    monkeypatch.setattr(schedule_policy, "match_kv_cache", match)
    priority = schedule == "priority"
    theirs = SchedulePolicy(
        *("fcfs" if priority else schedule, MatchesAsToldCache(), False, priority, False)
    )
    rng = random.Random(schedule)
    differed = 0
    for _ in range(200):
        queue, prefilled = waiting(rng), rng.randrange(1000, 2000)
        requests = [
            SimpleNamespace(
                rid=f"{one.arrival.index:03}",
                origin_input_ids=array("q", one.arrival.request.prompt_ids),
                output_ids=array("q"),
                extra_key=None,
                cache_salt=None,
                num_matched_prefix_tokens=one.matched,
                arrival_processed_tokens=one.prefilled,
                priority=int(one.arrival.turn > 0),
                time_stats=SimpleNamespace(wait_queue_entry_time=one.since),
            )
            for one in queue
        ]
        before = [one.arrival.index for one in queue]
        theirs.calc_priority(requests, processed_tokens=prefilled)
        SCHEDULES[schedule].sort(queue, prefilled, block=1)
        ours = [one.arrival.index for one in queue]
        assert ours == [int(one.rid) for one in requests]
        differed += ours != before
    assert differed > 50


def test_a_long_queue_is_served_in_order_of_arrival():
    for name, falls_back in [("lpm", True), ("hrrn", True), ("shortest-prefill-first", False)]:
        schedule = SCHEDULES[name]
        assert schedule.active(MOST_MATCHED) is schedule
        assert (schedule.active(MOST_MATCHED + 1) is SCHEDULES["fcfs"]) is falls_back


class Watched(ShadowWorld):
    """Notes who is looked up."""

    def __init__(self, world: ShadowWorld, matches_all: bool) -> None:
        super().__init__(world.cache, BLOCK)
        self.looks: list[int] = []
        self.fast = matches_all

    @property
    def matches_all(self) -> bool:
        return self.fast

    def look(self, waiting: Waiting) -> int:
        self.looks.append(waiting.arrival.index)
        return super().look(waiting)


@pytest.mark.parametrize(
    ("schedule", "fast", "looks"),
    [
        ("fcfs", True, [0, 1, 2, 3, 2, 3, 3]),
        # Of TOUCH_INTERVAL passes the first touches, which finds the first request alone.
        ("fcfs", False, [0]),
        ("lpm", False, [0, 1, 2, 3, 2, 3, 3]),
    ],
)
def test_who_waits_is_looked_up_as_often_as_sglang_does(schedule, fast, looks):
    world = Watched(make_shadow(), fast)
    trace = [request(i / 1000, range(100 * i, 100 * i + 2)) for i in range(4)]
    served = serve(world, trace, running=1, schedule=schedule)
    assert len(served) == 4
    assert world.looks == looks


def test_who_waits_is_looked_up_in_each_pass_of_a_chunked_prompt_too():
    """Though nobody else may run: SGLang sorts the queue before it goes on with the chunk."""
    world = Watched(make_shadow(), True)
    trace = [request(0, range(6)), request(1, range(100, 102))]
    serve(world, trace, running=1, chunk_tokens=2 * BLOCK)
    # Two more chunks of the first, and its own turn.
    assert world.looks == [0, 1, 1, 1]


@pytest.mark.parametrize(("blocks", "batches"), [(29, 3), (30, 3), (31, 4)])
@pytest.mark.parametrize("engine", [Replay, ShadowWorld])
def test_a_chunk_ends_where_it_is_full_though_no_state_can_lie_there(engine, blocks, batches):
    """States lie at every fourth block from where a chunk begins, and a chunk has ten."""
    block = GRID_TOKENS // 4
    if engine is Replay:
        pools = {"kv_tokens": 512, "state_slots": 16}
        cache = Replay(CpuCache(cost=BlockCost(COST, block), **pools), block)
    else:
        shape = ShadowShape(1, 512, 16, chunk=512, track=16, grid=4)
        cache = ShadowWorld(ShadowCache(shape, LruPolicy()), block)
    long = Request(0, None, blocks * block, 1, tuple(range(blocks)), ())
    service = ServiceTimes(prefill_flops_per_second=1e12, batch_seconds=1)
    loaded = Scheduler(
        *(cache, COST, service),
        **{"running": 1, "schedule": SCHEDULES["fcfs"], "block": block},
        chunk_tokens=10 * block,
    )
    (served,) = loaded.serve(TraceArrivals([long]))
    assert round(served.ttft_seconds) == batches


def test_looks_touch_lru_but_are_no_uses():
    """Room for one state beside the running ones: who is looked up last under LRU stays."""
    for policy in (LruPolicy(), SharedOrderPolicy()):
        cache = make_shadow(policy).cache
        first, second = (array("Q", [n]) for n in (1, 2))
        for number, hashes in enumerate((first, second)):
            cache.begin(number, hashes, 2)
            cache.end(number, None)
        assert cache.tree.victim(Pool.STATE).last == 1
        cache.tree.look(first, 1)
        assert cache.tree.victim(Pool.STATE).last == 2


@pytest.mark.parametrize("policy", [None, 2])
def test_far_apart_requests_are_served_as_if_alone(policy):
    trace = chat(gap_ms=1e12)
    pools = {"policy": policy, "kv_tokens": 400, "state_slots": 14}
    alone = [make_serve(one) for one in map(make_replay(**pools).serve, trace)]
    assert [make_serve(one) for one in serve(make_replay(**pools), trace)] == alone
    assert any(hit for _, hit, _ in alone)


def make_serve(served) -> tuple[int, int, bool]:
    return served.input_tokens, served.hit_tokens, served.served


@pytest.mark.parametrize("policy", [None, 1, 2])
def test_running_requests_hold_slots_and_give_all_of_them_back(policy):
    trace = chat(gap_ms=20)
    replay = make_replay(policy=policy, kv_tokens=500, state_slots=14)
    pools, cache = replay.cache, replay.cache.cache
    loaded = scheduler(replay, running=100)
    most = 0
    count = 0
    for served in loaded.serve(TraceArrivals(trace)):
        count += 1
        assert served.ttft_seconds > 0
        running = loaded.running
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


def test_what_can_never_fit_is_given_up_and_the_queue_goes_on(make):
    trace = [request(0, range(100)), request(1, range(200, 202))]
    served = serve(make(kv_tokens=50, state_slots=8), trace, running=4)
    assert [one.served for one in served] == [False, True]


def test_who_does_not_fit_beside_others_waits_for_one_to_end(make):
    trace = [request(0, range(30), output=1000), request(1, range(100, 130))]
    served = serve(make(kv_tokens=50, state_slots=12), trace, running=4)
    assert [one.served for one in served] == [True, True]
    assert served[1].wait_seconds == 30 * BLOCK + 999 - 1


@pytest.mark.parametrize("schedule", ["fcfs", "lpm"])
def test_both_engines_hit_the_same_under_load(schedule):
    def rate(cache: LoadedCache) -> float:
        served = serve(cache, chat(gap_ms=20), running=2, schedule=schedule)
        return sum(one.hit_tokens for one in served) / sum(one.input_tokens for one in served)

    pools = {"kv_tokens": 400, "state_slots": 14}
    real = rate(make_replay(**pools))
    assert rate(make_shadow(**pools)) == pytest.approx(real, abs=0.02)
    assert 0.05 < real < 0.95
