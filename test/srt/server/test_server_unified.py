"""A real server under `--enable-unified-memory`: policy 3 over states and KV in one memory."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from server_harness import Server, launch_server, tiny_model
from test_server_marconi import (
    TIGHT_POOLS,
    cached_answers_equal_uncached,
    conversations,
    marconi_state,
    outputs,
)

pytestmark = pytest.mark.server

UNIFIED = (
    *("--enable-unified-memory", "--mamba-radix-cache-strategy", "extra_buffer"),
    *("--max-mamba-cache-size", "10", "--max-running-requests", "2"),
)


def test_answers_do_not_depend_on_what_shares_memory_with_them():
    """Float32, evictions forced on both sides: greedy outputs equal those of a flushed server."""
    model = tiny_model("qwen3-next", "float32")
    arguments = (*TIGHT_POOLS, *UNIFIED, "--marconi-evict-policy", "3")
    with launch_server(model, *arguments) as server:
        assert "policy 3 (value)" in server.log() and "pools both of one memory" in server.log()
        prompts = conversations(seed=1)
        before, answers, cached = cached_answers_equal_uncached(server, prompts, checked=12)

        state = marconi_state(server)
        assert cached > 0 and state["hit_tokens"] - before["hit_tokens"] == cached
        assert state["errors"] == 0 and not state["fallbacks_to_lru"]
        gone = {kind for kind, count in state["victims"].items() if count}
        assert any(kind.endswith("state_only") for kind in gone), gone
        assert any("leaf" in kind for kind in gone), gone

        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda p: outputs(server, [p], 12)[0][0], prompts))
        assert together == answers
        assert marconi_state(server)["errors"] == 0 and server.alive()
        hints_reach_the_policy_and_disturb_no_request(server)


def hints_reach_the_policy_and_disturb_no_request(server: Server) -> None:
    """By /generate, the OpenAI endpoints and a session; what is malformed is counted alone."""
    server.flush_cache()
    before = Counter(marconi_state(server)["hints"])
    prompt = list(range(3, 150))
    plain = server.generate(prompt)["output_ids"]
    malformed: list[object] = [5, "last", {"lost": True}, {"last": [True]}, {"returns_in": -1}]
    for said in ({"last": True}, {"returns_in": 30}, *malformed):
        answer = server.generate(prompt, sampling={"custom_params": {"marconi": said}})
        assert answer["output_ids"] == plain, said
    chat = {
        "model": "default",
        "messages": [{"role": "user", "content": "Which rivers meet in Passau?"}],
        "max_tokens": 4,
        "custom_params": {"marconi": {"last": True}},
    }
    assert server.post("/v1/chat/completions", chat).json()["usage"]["completion_tokens"] > 0
    text = {"model": "default", "prompt": "Passau", "max_tokens": 4}
    more = {"custom_params": {"marconi": {"returns_in": 500}}}
    assert server.post("/v1/completions", text | more).json()["choices"]
    session = server.post("/open_session", {"capacity_of_str_len": 10_000}).json()
    server.generate(prompt, session_params={"id": session})
    server.post("/close_session", {"session_id": session})
    server.generate([5, 6, 7])
    counts = Counter(marconi_state(server)["hints"]) - before
    wanted = {"last": 2, "later": 1, "long": 1, "closed": 1, "malformed": len(malformed)}
    assert counts == wanted
    assert marconi_state(server)["errors"] == 0 and server.alive()
