"""Real servers of the patched SGLang 0.5.4 on a CPU: right answers, evictions, stock's hits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cpu_cache_v0_5_4 import CpuCache
from replay_v0_5_4 import serve
from server_harness import Server, launch_server, tiny_model
from test_server_marconi import TIGHT_POOLS, conversations, outputs

pytestmark = pytest.mark.server

LAUNCHER = (sys.executable, str(Path(__file__).with_name("cpu_server.py")))
MARCONI = ("--marconi-evict-policy", "2", "--marconi-eff-weight", "0.5")


def launch(*arguments: str):
    model = tiny_model("qwen3-next", "float32")
    return launch_server(model, *TIGHT_POOLS, *arguments, launcher=LAUNCHER)


def internal_state(server: Server) -> dict:
    return server.get("/get_server_info").json()["internal_states"][0]


def test_answers_do_not_depend_on_the_cache():
    """Float32, evictions forced: greedy outputs are those of a server without a prefix cache.

    A flushed server would not do: this release leaves old states in the slots that it flushes, and
    a request that gets such a slot starts from one.
    """
    prompts = conversations(seed=1)
    with launch("--disable-radix-cache") as server:
        expected, cached = outputs(server, prompts, 12)
        assert cached == 0
    with launch(*MARCONI, "--enable-metrics") as server:
        before = internal_state(server)["marconi"]
        answers, cached = outputs(server, prompts, 12)
        assert answers == expected

        shown = internal_state(server)
        state = shown["marconi"]
        assert cached > 0 and state["states_evicted"] - before["states_evicted"] > 20
        assert state["hit_tokens"] - before["hit_tokens"] == cached, "ours is the server's figure"
        assert state["requests"] - before["requests"] == len(prompts)
        assert state["errors"] == 0 and not state["fallbacks_to_lru"]
        assert state["flops_saved"] > 0 and sum(state["lost_tokens"].values()) > 0
        assert shown["marconi_evict_policy"] == 2 and shown["marconi_eff_weight"] == 0.5
        for name in ("victims", "hit_tokens", "flops_saved", "lost_tokens", "evicted_bytes"):
            assert f"sglang:marconi_{name}_total" in server.metrics()

        log = server.log()
        assert shown["max_mamba_cache_size"] == 24 and "max_mamba_cache_size: 24," in log
        (active,) = [line for line in log.splitlines() if "Marconi is active" in line]
        assert all(word in active for word in ("policy 2", "0.5", "Qwen3Next", "RadixCache"))
        server.flush_cache()
        assert server.alive() and "sanity check failed" not in log


def test_stock_stays_stock_and_policy_1_and_the_replay_hit_what_stock_hits():
    prompts = conversations(seed=3, turns=4)
    hits, replayed = [], []
    for policy in ((), ("--marconi-evict-policy", "1")):
        with launch(*policy) as server:
            answers = [server.generate(prompt, max_new_tokens=4) for prompt in prompts]
            hits.append([answer["meta_info"]["cached_tokens"] for answer in answers])
            shown = internal_state(server)
            if policy:
                assert shown["marconi"]["states_evicted"] > 20
            else:
                assert "marconi" not in shown and "Marconi is active" not in server.log()
                cache = CpuCache(kv_tokens=4096, state_slots=24)
                for prompt, answer in zip(prompts, answers, strict=True):
                    replayed.append(serve(cache, prompt, answer["output_ids"][:-1]).hit)
    assert hits[0] == hits[1] == replayed and sum(hits[0]) > 0
