"""A health check is no request: it changes no counter, clock, window or recording."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests
from server_harness import SMALL_POOLS, launch_server, recorded_lines, tiny_model
from test_server_marconi import marconi_state, outputs

PROBES = 12


@pytest.mark.server
def test_probes_of_an_idle_server_count_for_nothing(tmp_path: Path):
    recording = tmp_path / "requests.jsonl"
    arguments = ("--marconi-evict-policy", "2", "--marconi-record", str(recording))
    model = tiny_model("qwen3-next", "bfloat16")
    with launch_server(model, *SMALL_POOLS, *arguments) as server:
        # SGLang warms a server up with a request of its own.
        warm_up = marconi_state(server)["requests"]
        outputs(server, [list(range(3, 203)), list(range(3, 153))], 4)
        before = marconi_state(server)
        assert before["requests"] == warm_up + 2 and before["clock"] > 0
        for path in ("health", "health_generate") * (PROBES // 2):
            assert requests.get(f"{server.base_url}/{path}", timeout=60).status_code == 200
            # SGLang runs a probe only while nothing else came from the scheduler lately.
            time.sleep(0.2)
        assert server.log().count("GET /health") >= PROBES, "the server was not probed"
        after = marconi_state(server)
        # SGLang caches what a probe generated, as anybody's.
        for state in (before, after):
            state.pop("cached_prefixes")
        assert after == before
        outputs(server, [list(range(3, 203))], 4)
        assert marconi_state(server)["requests"] == warm_up + 3
        recorded = recorded_lines(recording, warm_up + 3)
    assert [line["input_length"] for line in recorded][warm_up:] == [200, 150, 200]
