"""Tuning: what is chosen from a window, when, and that no failure reaches the server."""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import time
from array import array
from collections import deque
from dataclasses import replace
from itertools import pairwise

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.cpu_cache import EXAMPLE_COST
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.eviction.lru import LruPolicy
from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.tuning import process, wire
from sglang.srt.mem_cache.marconi.tuning.controller import Controller
from sglang.srt.mem_cache.marconi.tuning.events import Began, Ended, Flushed, serve
from sglang.srt.mem_cache.marconi.tuning.retrospect import (
    DECAY,
    HYSTERESIS,
    Retrospect,
    Trial,
    Verdict,
    choose,
)
from sglang.srt.mem_cache.marconi.tuning.schedule import ASK_EVERY, Schedule, Step
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from sglang.srt.mem_cache.marconi.tuning.splits import SplitWatch, resplit
from sglang.srt.mem_cache.marconi.tuning.tuner import RESTART_AFTER, Answer, Tuner
from sglang.srt.mem_cache.marconi.tuning.weights import (
    EFF_WEIGHTS,
    first_weight,
    weighted_policy,
)
from sglang.srt.mem_cache.marconi.tuning.worker import WorkerSetup

SHAPE = ShadowShape(block_tokens=64, kv_blocks=120, state_slots=16, chunk=128, track=4)
#: Far beyond what any answer takes on a loaded machine.
PATIENCE = 120.0


def config(**options) -> MarconiConfig:
    return MarconiConfig.from_options({"marconi_evict_policy": 2, **options})


def events(seed: int, count: int, sessions: int = 12) -> list[Began | Ended]:
    """Sessions that grow, some of them long."""
    rng = random.Random(seed)
    histories: list[list[int]] = [[] for _ in range(sessions)]
    made: list[Began | Ended] = []
    for run_id in range(count):
        which = rng.randrange(sessions)
        history = histories[which]
        if len(history) > 40:
            history.clear()
        history += (rng.getrandbits(63) for _ in range(rng.randrange(1, 4 + which)))
        came = (1_700_000_000_000 + run_id, 5 * run_id)
        made.append(Began(run_id, 64 * len(history) + 1, array("Q", history), *came))
        grown = [rng.getrandbits(63) for _ in range(4)]
        history += grown
        made.append(Ended(run_id, array("Q", grown), 0, [None, *Hint][run_id % 7]))
    return made


def frames(stream) -> list[bytes]:
    return [
        wire.began(e.run_id, e.prompt_tokens, e.hashes.tobytes(), e.arrived_ms, e.waited_ms)
        if isinstance(e, Began)
        else wire.ended(
            e.run_id, None if e.generated is None else e.generated.tobytes(), hint=e.hint
        )
        for e in stream
    ]


def retrospect() -> Retrospect:
    return Retrospect(SHAPE, EXAMPLE_COST, config())


# -- what may be chosen, and what is


def test_weights_come_lowest_first():
    assert [f"{weight:g}" for weight in EFF_WEIGHTS] == [f"{n / 10:g}" for n in range(21)]


@pytest.mark.parametrize(
    ("options", "tuned", "untuned"),
    [
        ({}, 0.0, 0.5),
        ({"marconi_eff_weight": 0.3}, 0.3, 0.3),
        ({"disable_marconi_autotune": True}, 0.5, 0.5),
        ({"marconi_evict_policy": 1}, 0.0, 0.0),
        ({"marconi_evict_policy": 3}, 0.0, 0.0),
    ],
)
def test_the_weight_before_one_is_chosen(options, tuned, untuned):
    assert first_weight(config(**options), is_tuned=True) == tuned
    assert first_weight(config(**options), is_tuned=False) == untuned


@pytest.mark.parametrize(
    ("saved", "current", "chosen"),
    [
        ([1.0, 3.0, 3.0, 2.0], None, 1),
        ([5.0, 5.0, 5.0], None, 0),
        ([0.0, 0.0], None, 0),
        ([100.0, 100.0 * (1 + HYSTERESIS)], 0, 0),
        ([100.0, 100.1 * (1 + HYSTERESIS)], 0, 1),
        ([100.0, 99.0, 100.5], 1, 2),
        ([100.0, 99.9, 98.0], 1, 1),
        ([0.0, 0.0], 1, 1),
    ],
)
def test_the_first_of_the_best_is_chosen_and_kept_unless_clearly_beaten(saved, current, chosen):
    assert choose(saved, current) == chosen


def test_a_window_that_evicts_nothing_leaves_the_lowest_weight():
    look = retrospect()
    for event in events(1, 6, sessions=3):
        look.follow(event)
    verdict = look.look_back()
    assert verdict.chosen == 0 and verdict.requests == 6
    assert len({trial.flops_saved for trial in verdict.trials}) == 1
    assert verdict.trials[0].flops_saved > 0


def test_a_look_back_is_a_replay_of_all_requests_with_earlier_windows_weighed_less():
    stream = events(2, 500)
    look = retrospect()
    for event in stream[:600]:
        look.follow(event)
    first = look.look_back()
    for event in stream[600:]:
        look.follow(event)
    verdict = look.look_back()
    assert (first.requests, verdict.requests) == (300, 200)
    trials = list(zip(EFF_WEIGHTS, first.trials, verdict.trials, strict=True))
    for weight, before, trial in trials[::7]:
        shadow = ShadowCache(SHAPE, weighted_policy(config(), weight, EXAMPLE_COST))
        hits = [64 * serve(shadow, event) for event in stream]
        flops = [EXAMPLE_COST.flops(0, hit) for hit in hits]
        assert before.flops_saved == sum(flops[:600])
        assert trial.flops_saved == DECAY * sum(flops[:600]) + sum(flops[600:])
        assert trial.hit_tokens == sum(hits[600:]) and shadow.evictions > 50
    saved = [trial.flops_saved for trial in first.trials]
    assert len(set(saved)) > 3 and first.chosen == saved.index(max(saved))


def test_a_flush_empties_the_shadow():
    look = retrospect()
    stream = events(4, 2, sessions=1)
    for event in (*stream[:2], Flushed(), *stream[2:]):
        look.follow(event)
    assert all(trial.flops_saved == 0 for trial in look.look_back().trials)


# -- when


def steps(schedule: Schedule, requests: int, first_eviction: int) -> dict[int, Step]:
    found = {}
    for request in range(1, requests + 1):
        step = schedule.count(request >= first_eviction)
        if step is not Step.NOTHING:
            found[request] = step
    return found


def test_the_first_window_is_a_multiple_of_the_requests_before_the_first_eviction():
    found = steps(Schedule(config(marconi_bootstrap_multiplier=5)), 100, first_eviction=10)
    asks = {50 + ASK_EVERY * i: Step.ASK for i in range(1, 4)}
    assert found == {50: Step.LOOK_BACK, **asks}
    assert steps(Schedule(config(marconi_bootstrap_multiplier=1)), 12, 10) == {11: Step.LOOK_BACK}
    assert steps(Schedule(config()), 1000, first_eviction=1001) == {}


@pytest.mark.parametrize("gave_up", [False, True])
def test_later_windows_follow_the_answer_and_none_where_the_interval_is_zero(gave_up):
    for interval, expected in ((30, 66 + 30), (0, 66 + 50 if gave_up else None)):
        schedule = Schedule(config(marconi_tuning_interval=interval))
        assert list(steps(schedule, 66, 10)) == [50, 66]
        assert schedule.is_pending and schedule.bootstrap == 50
        schedule.answered(gave_up)
        assert not schedule.is_pending
        following = list(steps(schedule, 200, 0))
        assert (66 + following[0] if following else None) == expected


# -- the pipe


def test_frames_are_read_as_they_were_written():
    stream = [*events(5, 20), Ended(77, None)]
    data = wire.setup(b"what it needs") + b"".join(frames(stream))
    pipe = io.BytesIO(data + wire.flushed() + wire.look_back(3) + b"cut off")
    assert wire.read_setup(pipe) == b"what it needs"
    assert list(wire.read_events(pipe)) == [*stream, Flushed(), wire.LookBack(3)]


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_no_garbage_is_an_answer(garbage):
    with pytest.raises(ValueError, match=r"answer|unreadable"):
        wire.read_answer(garbage, 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"chosen": 1', b'"chosen": 21'),
        (b'"chosen": 1', b'"chosen": -1'),
        (b'"window": 1', b'"window": 2'),
        (b"[1.0, 2.0, ", b"[NaN, 2.0, "),
        (b"[1.0, 2.0, ", b"[1.0, "),
        (b'"requests"', b'"request"'),
    ],
)
def test_a_corrupt_answer_is_refused(old, new):
    verdict = Verdict(1, 5, tuple(Trial(float(i), i) for i in range(1, 1 + len(EFF_WEIGHTS))))
    good = wire.answer(1, verdict, 0.5)
    assert wire.read_answer(good, 1) == (verdict, 0.5)
    assert old in good
    with pytest.raises(ValueError):
        wire.read_answer(good.replace(old, new), 1)


# -- the process


def setup(
    current: int | None = None, *, memory: int = 1 << 30, shape: ShadowShape = SHAPE
) -> WorkerSetup:
    return WorkerSetup(shape, EXAMPLE_COST, config(), current, memory)


@pytest.fixture
def tuners():
    made: list[Tuner] = []

    def make(seconds: float = PATIENCE, **options) -> Tuner:
        made.append(Tuner(lambda current: setup(current, **options), seconds))
        return made[-1]

    yield make
    for tuner in made:
        tuner.stop()


def feed(tuner: Tuner, stream) -> None:
    for frame in frames(stream):
        tuner.send(frame)
    for _ in range(sum(isinstance(event, Began) for event in stream)):
        tuner.count_request()


def wait_for(tuner: Tuner) -> Answer:
    deadline = time.monotonic() + PATIENCE
    while (found := tuner.answer()) is Answer.PENDING and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_the_process_answers_what_the_same_look_back_here_would(tuners):
    stream = events(6, 300)
    tuner, here = tuners(), retrospect()
    for window in range(2):
        part = stream[300 * window : 300 * (window + 1)]
        feed(tuner, part)
        for event in part:
            here.follow(event)
        tuner.look_back(100)
        assert wait_for(tuner) is Answer.CHOSEN
        assert tuner.verdict == here.look_back()
    assert tuner.health.answers == 2 and tuner.health.failures == 0
    assert tuner.health.cpu_seconds > 0


def test_the_process_is_nice_bounded_and_free_of_torch(tuners):
    tuner = tuners()
    feed(tuner, events(7, 30))
    tuner.look_back(30)
    assert wait_for(tuner) is Answer.CHOSEN
    worker = psutil.Process(tuner.pid)
    assert worker.nice() == 19 and worker.rlimit(psutil.RLIMIT_AS)[0] == 1 << 30
    loaded = [region.path for region in worker.memory_maps()]
    assert loaded and not any("torch" in path or "numpy" in path for path in loaded)
    tuner.stop()
    worker.wait(PATIENCE)


@pytest.mark.parametrize("when", ["before a window", "while it replays"])
def test_a_killed_process_is_given_up_and_started_again(tuners, when, caplog):
    tuner = tuners()
    feed(tuner, events(8, 300))
    if when == "while it replays":
        tuner.look_back(300)
    os.kill(tuner.pid, signal.SIGKILL)
    if when == "before a window":
        psutil.Process(tuner.pid).wait()
        feed(tuner, events(9, 1))
        tuner.look_back(300)
    assert wait_for(tuner) is Answer.NONE
    assert tuner.pid is None and tuner.health.failures == 1
    feed(tuner, events(9, RESTART_AFTER))
    assert tuner.pid is not None and tuner.health.restarts == 1
    tuner.look_back(300)
    assert tuner.answer() is Answer.NONE, "it has not seen the whole window"
    feed(tuner, events(10, 300))
    tuner.look_back(300)
    assert wait_for(tuner) is Answer.CHOSEN and tuner.verdict.requests == 300
    assert tuner.health.failures == 1
    assert caplog.text.count("the tuner failed") == 1


def test_a_process_that_hangs_is_given_up(tuners, caplog):
    tuner = tuners(seconds=0.2)
    feed(tuner, events(11, 10))
    worker = psutil.Process(tuner.pid)
    worker.suspend()
    tuner.look_back(10)
    assert wait_for(tuner) is Answer.NONE
    assert tuner.health.failures == 1 and "no answer within 0.2 seconds" in caplog.text
    worker.wait(PATIENCE)


def test_a_process_without_memory_says_so(tuners, caplog):
    tuner = tuners(memory=1 << 20)
    feed(tuner, events(13, 2000))
    tuner.look_back(2000)
    assert wait_for(tuner) is Answer.NONE
    assert tuner.health.failures == 1 and "the tuner failed" in caplog.text


FAULTY = {
    "garbage": "print('{not an answer', flush=True); sys.stdin.read()",
    "an endless line": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "the wrong window": """print('{"window": 9, "chosen": 0, "requests": 1, "flops_saved": [], '
'"hit_tokens": [], "cpu_seconds": 0}', flush=True); sys.stdin.read()""",
    "nothing, and ends": "",
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_process_that_answers_amiss_is_replaced(tuners, fault, tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text("import sys\n" + FAULTY[fault])
    monkeypatch.setattr(process.worker, "__file__", str(script))
    tuner = tuners()
    feed(tuner, events(14, 20))
    tuner.look_back(20)
    assert wait_for(tuner) is Answer.NONE
    assert tuner.pid is None and tuner.health.failures == 1


def test_a_process_that_stops_reading_is_given_up(tuners, tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text("import time\ntime.sleep(3600)")
    monkeypatch.setattr(process.worker, "__file__", str(script))
    monkeypatch.setattr(process, "MAX_BACKLOG", 1 << 20)
    tuner = tuners()
    frame = wire.began(1, 1, b"h" * (1 << 19))
    for _ in range(8):
        tuner.send(frame)
    assert tuner.pid is None and tuner.health.failures == 1 and tuner.backlog == 0


def test_waits_double_with_every_failure_and_a_missing_interpreter_is_one(tuners, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    tuner = tuners()
    starts = []
    for request in range(RESTART_AFTER * 16):
        before = tuner.health.restarts
        tuner.count_request()
        if tuner.health.restarts > before:
            starts.append(request + 1)
    assert starts == [RESTART_AFTER * n for n in (1, 3, 7, 15)]
    assert tuner.health.failures == 5
    tuner.look_back(1)
    assert tuner.answer() is Answer.NONE


# -- ranks


def test_ranks_adopt_the_same_at_the_same_request_and_meet_only_while_an_answer_is_due(tuners):
    options = config(marconi_tuning_interval=100)
    meetings: deque[tuple[int, int]] = deque()
    met: list[list[int]] = [[], []]
    adopted: list[list[tuple[int, float]]] = [[], []]

    def first(found: int, chosen: int) -> tuple[int, int]:
        met[0].append(ranks[0].schedule.requests)
        meetings.append((found, chosen))
        return found, chosen

    def second(found: int, chosen: int) -> tuple[int, int]:
        met[1].append(ranks[1].schedule.requests)
        return meetings.popleft()

    tuner = tuners()
    ranks = [
        Controller(
            options,
            tuner if rank == 0 else None,
            agree,
            lambda weight, rank=rank: adopted[rank].append((ranks[rank].schedule.requests, weight)),
        )
        for rank, agree in enumerate((first, second))
    ]
    stream = events(4, 900, sessions=20)
    sent = frames(stream)
    for request in range(900):
        tuner.send(sent[2 * request])
        tuner.send(sent[2 * request + 1])
        if ranks[0].schedule.is_pending:
            time.sleep(0.05)
        if request == 500:
            os.kill(tuner.pid, signal.SIGKILL)
        for rank in ranks:
            rank.count_request(evicted=request >= 20)
        assert ranks[0].in_force == ranks[1].in_force
        assert ranks[0].schedule.next_look_back == ranks[1].schedule.next_look_back
    assert met[0] == met[1] and not meetings
    assert adopted[0] == adopted[1] and adopted[0]
    assert tuner.health.failures == 1 and tuner.health.answers >= 2
    assert ranks[0].unanswered == ranks[1].unanswered >= 1
    assert all(b - a >= ASK_EVERY for a, b in pairwise(met[0]))
    described = ranks[0].describe()
    last = described["last_window"]
    assert last["flops_saved"].keys() == {f"{weight:g}" for weight in EFF_WEIGHTS}
    assert last["chosen"] in EFF_WEIGHTS and described["in_force"] in EFF_WEIGHTS
    assert described["tuner"]["restarts"] == 1
    assert "tuner" not in ranks[1].describe()


# -- the split of memory


def test_a_split_that_saves_much_more_is_named_and_no_other():
    cost = ModelCost(a=1e6, b=100, kv_bytes_per_token=10, state_bytes=64 * 10 * 4)
    starved = replace(SHAPE, state_slots=6, kv_blocks=400)
    watch = SplitWatch(starved, cost, LruPolicy)
    ample = SplitWatch(replace(SHAPE, state_slots=4000, kv_blocks=40000), cost, LruPolicy)
    for event in events(3, 600):
        watch.follow(event)
        ample.follow(event)
    advice = watch.look_back()
    assert advice is not None and ample.look_back() is None
    assert advice.ratio > advice.ratio_now and advice.saved >= advice.saved_now + 0.05
    assert advice.requests == 600
    assert watch.look_back() is None, "a window without requests advises nothing"
    # The same memory as compressed states: no ratio gives their pool another size.
    compressed = SplitWatch(replace(starved, working_states=0), cost, LruPolicy)
    for event in events(3, 600):
        compressed.follow(event)
    assert compressed.look_back() is None

    kv = starved.kv_blocks * 64 * 10
    memory = kv + starved.state_slots * cost.state_bytes
    other = resplit(starved, cost, memory, advice.ratio)
    shadow, saved, needed = ShadowCache(other, LruPolicy()), 0.0, 0.0
    for event in events(3, 600):
        saved += cost.flops(0, 64 * serve(shadow, event))
        needed += cost.flops(0, event.prompt_tokens) if isinstance(event, Began) else 0.0
    assert advice.saved == pytest.approx(saved / needed)
    assert resplit(starved, cost, memory, 1e-9) is None


def test_the_split_is_warned_about_once(tuners, caplog):
    tuner = tuners(shape=replace(SHAPE, state_slots=6, kv_blocks=400))
    controller = Controller(config(marconi_tuning_interval=20), tuner, None, lambda choice: None)
    deadline = time.monotonic() + PATIENCE
    for answers in (1, 2):
        feed(tuner, events(answers, 600))
        while tuner.health.answers < answers and time.monotonic() < deadline:
            controller.count_request(evicted=True)
            time.sleep(0.01)
    assert tuner.health.answers == 2 and tuner.verdict.split is not None
    assert caplog.text.count("would have saved") == 1
    assert controller.describe()["better_split"]["ratio"] > 0
    line = wire.answer(1, tuner.verdict, 0.5)
    assert wire.read_answer(line, 1)[0] == tuner.verdict
