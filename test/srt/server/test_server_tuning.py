"""Real servers that tune themselves: ranks adopt the same, a dead tuner fails no request."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from server_harness import Server, launch_server, tiny_model
from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest, read_recording

pytestmark = pytest.mark.server

POOLS = (
    *("--max-total-tokens", "4096", "--max-running-requests", "4"),
    *("--max-mamba-cache-size", "32", "--context-length", "4096"),
    *("--mamba-radix-cache-strategy", "extra_buffer"),
)
TUNING = (
    *("--marconi-evict-policy", "2", "--marconi-tuning-interval", "60"),
    *("--marconi-bootstrap-multiplier", "2"),
)


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, 200) for _ in range(count)]


def recent_sessions(rng: random.Random, count: int) -> Iterator[list[int]]:
    """Conversations that grow one after the other: what was used last is what will be used."""
    while True:
        session = tokens(rng, 200)
        for _ in range(6):
            if count == 0:
                return
            count -= 1
            session += tokens(rng, 70)
            yield list(session)


def long_documents(rng: random.Random, count: int) -> Iterator[list[int]]:
    """Three long prompts that come back now and then, among short ones that never do."""
    documents = [tokens(rng, 900) for _ in range(3)]
    for i in range(count):
        yield documents[i // 8 % 3] + tokens(rng, 5) if i % 8 == 0 else tokens(rng, 300)


def tuning_state(server: Server) -> dict:
    return server.info()["internal_states"][0]["marconi"]["tuning"]


def tuned(log: str, rank: int) -> list[str]:
    return re.findall(rf"TP{rank}\] Marconi: tuned (at request .*)", log)


def flushed(server: Server) -> dict[str, str]:
    """What each rank logs at a flush: its clock and the digest of all its victims."""
    server.flush_cache()
    for _ in range(100):
        lines = re.findall(r"TP(\d)\] Marconi: cache flushed at (tick .*)", server.log())
        if len(lines) % 2 == 0 and lines:
            break
        time.sleep(0.1)
    return dict(lines)


def test_ranks_adopt_the_same_and_a_killed_tuner_fails_no_request():
    """The workload changes half way; the tuner is killed while it replays, and comes back."""
    rng = random.Random(5)
    check = {"SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}
    arguments = ("--tp", "2", "--enable-metrics", *POOLS, *TUNING)
    with launch_server(tiny_model("qwen3-next"), *arguments, env=check) as server:
        served = 0

        def serve(prompts: Iterator[list[int]]) -> None:
            nonlocal served
            for prompt in prompts:
                answer = server.generate(prompt, max_new_tokens=2)
                assert answer["meta_info"]["completion_tokens"] == 2
                served += 1

        serve(recent_sessions(rng, 160))
        before = tuning_state(server)
        assert before["tuner"]["answers"] >= 1 and before["tuner"]["failures"] == 0
        assert before["in_force"] == 0, "recency is all that the first half needs"
        serve(long_documents(rng, 160))
        state = tuning_state(server)
        assert state["adoptions"] >= 1 and state["in_force"] > 0
        saved = state["last_window"]["flops_saved"]
        assert saved[f"{state['in_force']:g}"] > 1.2 * saved["0"]
        digests = flushed(server)
        assert len(digests) == 2 and digests["0"] == digests["1"]
        log = server.log()
        assert tuned(log, 0) == tuned(log, 1) and len(tuned(log, 0)) >= 2

        os.kill(state["tuner"]["pid"], signal.SIGKILL)
        serve(recent_sessions(rng, 90))
        after = tuning_state(server)
        assert after["tuner"]["failures"] == 1 and after["tuner"]["restarts"] == 1
        assert psutil.Process(after["tuner"]["pid"]).nice() == 19
        assert server.log().count("the tuner failed") == 1
        log = server.log()
        assert tuned(log, 0) == tuned(log, 1)
        digests = flushed(server)
        assert digests["0"] == digests["1"] and server.alive()

        marconi = server.info()["internal_states"][0]["marconi"]
        assert marconi["errors"] == 0 and not marconi["fallbacks_to_lru"]
        assert marconi["requests"] >= served
        metrics = server.metrics()
        for name in ("tuner_answers_total", "tuner_failures_total", "adoptions_total"):
            assert f"sglang:marconi_{name}" in metrics
        assert "sglang:marconi_eff_weight" in metrics


def test_auto_is_policy_3_and_requests_are_recorded(tmp_path):
    rng = random.Random(6)
    recording = tmp_path / "requests.jsonl"
    policy = ("--marconi-evict-policy", "auto", "--marconi-record", str(recording))
    with launch_server(tiny_model("falcon-h1"), *POOLS, *policy) as server:
        for prompt in long_documents(rng, 200):
            server.generate(prompt, max_new_tokens=2)
        marconi = server.info()["internal_states"][0]["marconi"]
        assert "Marconi is active: policy 3 (value)" in server.log()
        assert marconi["marconi_evict_policy"] == 3 and marconi["policy"] == "value"
        tuning = marconi["tuning"]
        assert tuning["tuner"]["failures"] == 0 and "last_window" not in tuning["tuner"]
        assert marconi["errors"] == 0 and not marconi["fallbacks_to_lru"]
        server.flush_cache()
        assert server.alive()
        # A launch has requests of its own, and the writer is of lowest priority.
        prompts = list(long_documents(random.Random(6), 200))
        lengths = [len(prompt) for prompt in prompts]
        deadline = time.monotonic() + 60
        while last_lengths(recording, 200) != lengths and time.monotonic() < deadline:
            time.sleep(0.1)
    assert last_lengths(recording, 200) == lengths
    requests = recorded(recording)[-200:]
    arrivals = [request.timestamp_ms / 1000 for request in requests]
    assert arrivals == sorted(arrivals) and 0 < time.time() - arrivals[0] < 600
    assert all(request.waited_ms for request in requests)
    for these, those in itertools.combinations(range(0, 64, 8), 2):
        same = prompts[these][:64] == prompts[those][:64]
        assert (requests[these].prompt_ids[0] == requests[those].prompt_ids[0]) == same


def last_lengths(path: Path, count: int) -> list[int]:
    """Tokens of the last ``count`` recorded prompts."""
    return [request.input_length for request in recorded(path)[-count:]]


def recorded(path: Path) -> list[HashedRequest]:
    return read_recording(path, pytest.fail)[0] if path.exists() and path.stat().st_size else []
