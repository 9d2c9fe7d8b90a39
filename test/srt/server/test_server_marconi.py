"""Real servers under `--marconi-evict-policy`: right answers, bounded pools, ranks that agree."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from launches.served import POOLS as TIGHT_POOLS
from launches.trial import conversations
from server_harness import Server, failing_launch, launch_server, tiny_model

pytestmark = pytest.mark.server

MARCONI = ("--marconi-evict-policy", "2", "--marconi-eff-weight", "0.5")


def marconi_state(server: Server) -> dict:
    return server.info()["internal_states"][0]["marconi"]


def outputs(server: Server, prompts: list[list[int]], tokens: int) -> tuple[list, int]:
    """Greedy continuations one by one, and the prompt tokens that came from the cache."""
    answers = [server.generate(prompt, max_new_tokens=tokens) for prompt in prompts]
    cached = sum(answer["meta_info"]["cached_tokens"] for answer in answers)
    return [answer["output_ids"] for answer in answers], cached


def cached_answers_equal_uncached(
    server: Server, prompts: list[list[int]], *, checked: int
) -> tuple[dict, list, int]:
    """Ask for all prompts, after about ``checked`` of them were asked of an empty cache each.

    Returns:
        The server's counters before all were asked, the answers, and the prompt tokens that came
        from the cache.
    """
    uncached = []
    for prompt in prompts[:: len(prompts) // checked]:
        server.flush_cache()
        answers, cached = outputs(server, [prompt], 12)
        uncached.append((prompt, answers[0]))
        assert cached == 0
    server.flush_cache()
    before = marconi_state(server)
    answers, cached = outputs(server, prompts, 12)
    by_prompt = {tuple(p): a for p, a in zip(prompts, answers, strict=True)}
    for prompt, answer in uncached:
        assert by_prompt[tuple(prompt)] == answer
    return before, answers, cached


@pytest.mark.parametrize("strategy", ["no_buffer", "extra_buffer"])
def test_answers_do_not_depend_on_the_cache(strategy):
    """Float32, evictions forced: greedy outputs equal those of a flushed server, token for token.

    On the extra_buffer server the thousand requests of `survive_a_thousand` follow, so that no
    second server need be started.
    """
    arguments = ("--mamba-radix-cache-strategy", strategy, "--enable-metrics", *MARCONI)
    model = tiny_model("qwen3-next", "float32")
    with launch_server(model, *TIGHT_POOLS, *arguments) as server:
        prompts = conversations(seed=1)
        before, _, cached = cached_answers_equal_uncached(server, prompts, checked=16)

        state = marconi_state(server)
        assert cached > 0 and state["states_evicted"] - before["states_evicted"] > 20
        assert state["hit_tokens"] - before["hit_tokens"] == cached, "ours is the server's figure"
        assert state["requests"] - before["requests"] == len(prompts)
        assert state["errors"] == 0 and not state["fallbacks_to_lru"]
        assert state["marconi_evict_policy"] == 2 and state["flops_saved"] > 0
        assert sum(state["lost_tokens"].values()) > 0

        shown = server.info()
        assert shown["marconi_evict_policy"] == 2 and shown["marconi_eff_weight"] == 0.5
        metrics = server.metrics()
        for name in ("victims", "hit_tokens", "flops_saved", "lost_tokens", "evicted_bytes"):
            assert f"sglang:marconi_{name}_total" in metrics
        active = [line for line in server.log().splitlines() if "Marconi is active" in line]
        assert len(active) == 1
        assert all(word in active[0] for word in ("policy 2", "0.5", "Qwen3Next", "MambaRadixRust"))
        if strategy == "extra_buffer":
            survive_a_thousand(server)


def survive_a_thousand(server: Server) -> None:
    """1,000 concurrent requests, a tenth cancelled; the server answers and no slot is lost.

    SGLang checks its pools when idle and ends itself on a leak.
    """
    rng = random.Random(2)
    sessions = [[rng.randrange(3, 200) for _ in range(rng.randrange(20, 200))] for _ in range(30)]
    lock = threading.Lock()

    def one(i: int) -> None:
        with lock:
            prompt = list(sessions[i % len(sessions)])
            cancel = rng.random() < 0.1
            sessions[i % len(sessions)] = (
                prompt + [rng.randrange(3, 200) for _ in range(rng.randrange(5, 60))]
            )[-600:]
        if cancel:
            timer = threading.Timer(0.05, server.abort, kwargs={"rid": f"cancel-{i}"})
            timer.start()
            server.generate(prompt, max_new_tokens=64, rid=f"cancel-{i}")
            timer.join()
        else:
            answer = server.generate(prompt, max_new_tokens=3)
            assert answer["meta_info"]["completion_tokens"] == 3

    before = marconi_state(server)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(1000)))
    state = marconi_state(server)
    assert state["states_evicted"] - before["states_evicted"] > 500
    assert state["errors"] == 0 and not state["fallbacks_to_lru"]
    assert server.generate([5, 6, 7], max_new_tokens=2)["meta_info"]["completion_tokens"] == 2
    server.flush_cache()
    assert server.alive() and "leak" not in server.log().lower()


def test_stock_stays_stock_and_policy_1_hits_what_stock_hits():
    """On the Mamba2 hybrid, request by request."""
    prompts = conversations(seed=3, turns=6)
    arguments = ("--mamba-radix-cache-strategy", "extra_buffer")
    hits = []
    for policy in ((), ("--marconi-evict-policy", "1")):
        with launch_server(tiny_model("falcon-h1"), *TIGHT_POOLS, *arguments, *policy) as server:
            hits.append(
                [
                    server.generate(prompt, max_new_tokens=4)["meta_info"]["cached_tokens"]
                    for prompt in prompts
                ]
            )
            if not policy:
                assert "marconi" not in server.get("/server_info").text
                assert "RustUnifiedTreeCore" in server.log()
                assert "Marconi is active" not in server.log()
            else:
                assert marconi_state(server)["states_evicted"] > 20
    assert hits[0] == hits[1] and sum(hits[0]) > 0


def short_and_long(seed: int, count: int = 120) -> list[list[int]]:
    """Prompts of 30 to 2,000 tokens, some of them a longer form of an earlier one.

    How much less a long one is worth by bytes depends on what a state weighs in tokens.
    """
    rng = random.Random(seed)
    prompts: list[list[int]] = []
    for _ in range(count):
        start = rng.choice(prompts) if len(prompts) > 8 and rng.random() < 0.4 else []
        length = round(30 * math.exp(rng.random() * math.log(60)))
        prompts.append((start + [rng.randrange(3, 200) for _ in range(length)])[:2000])
    return prompts


POLICY_3 = ("--marconi-evict-policy", "3")
RANKS = {
    "tensor-parallel": ("qwen3-next", "TP", ("--tp", "2", *MARCONI)),
    # Its two stages hold unlike layers, and so unlike bytes of a token and of a state.
    "pipeline": ("qwen3.5", "PP", ("--pp-size", "2", *POLICY_3)),
}


@pytest.mark.parametrize("name", RANKS)
def test_both_ranks_evict_the_same(name: str):
    """SGLang's own rank check is on, and the digests of all victims agree."""
    model, ranks, flags = RANKS[name]
    arguments = (*flags, "--mamba-radix-cache-strategy", "extra_buffer")
    check = {"SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}
    with launch_server(tiny_model(model), *TIGHT_POOLS, *arguments, env=check) as server:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda prompt: server.generate(prompt, 4), short_and_long(seed=4)))
        assert marconi_state(server)["states_evicted"] > 20
        server.flush_cache()
        last = {}
        for _ in range(100):
            flushed = rf"{ranks}(\d)\] Marconi: cache flushed at (tick .*)"
            last = dict(re.findall(flushed, server.log()))
            if len(last) == 2:
                break
            time.sleep(0.1)
        assert set(last) == {"0", "1"} and last["0"] == last["1"], server.log()[-3000:]
        assert " after 0 victims" not in last["0"]
        assert server.alive()


def test_bad_input_ends_the_launch_before_the_model_loads():
    log = failing_launch(tiny_model("qwen3-next"), *MARCONI, "--disable-radix-cache")
    assert "--marconi-evict-policy is 2 but --disable-radix-cache is set" in log
    assert "Load weight begin" not in log


ENGINE_SCRIPT = """
import json, sys
import sglang

if __name__ == "__main__":
    engine = sglang.Engine(
        model_path=sys.argv[1], dp_size=2, max_total_tokens=4096, max_running_requests=4,
        max_mamba_cache_size=24, context_length=4096, mamba_radix_cache_strategy="extra_buffer",
        marconi_evict_policy=3, marconi_evict_pools="state",
    )
    sampling = {"max_new_tokens": 2, "temperature": 0}
    said = [{"last": True}, {"last": True}, {"returns_in": 2}, {"last": "perhaps"}]
    for i, hint in enumerate(said):
        hinted = {**sampling, "custom_params": {"marconi": hint}}
        engine.generate(input_ids=[5 + i] * 80, sampling_params=hinted)
    info = engine.get_server_info()
    print("STATES " + json.dumps([state["marconi"] for state in info["internal_states"]]))
    engine.shutdown()
"""


def test_engine_keywords_and_hints_reach_both_data_parallel_replicas(tmp_path):
    script = tmp_path / "use_engine.py"
    script.write_text(ENGINE_SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tiny_model("qwen3-next"))],
        capture_output=True,
        text=True,
        timeout=400,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("STATES ")] or [
        pytest.fail(done.stdout[-3000:] + done.stderr[-3000:])
    ]
    states = json.loads(line.removeprefix("STATES "))
    assert len(states) == 2
    assert all(state["marconi_evict_pools"] == "state" for state in states)
    assert sum(state["requests"] for state in states) >= 4
    hints = sum((Counter(state["hints"]) for state in states), Counter())
    assert hints["last"] == 2 and hints["malformed"] == 1 and hints.total() == 4
    assert all(state["requests"] > 0 for state in states), "both replicas served"
