"""A real server under `--enable-unified-memory`: policy 3 over states and KV in one memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from server_harness import launch_server, tiny_model
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
