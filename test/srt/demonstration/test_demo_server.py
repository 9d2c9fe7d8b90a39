"""The whole demo on real servers, with a few requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from demonstration.contenders import TITLES
from server_harness import tiny_model

#: Four servers at a time: beside no other that wants much memory.
pytestmark = [pytest.mark.server, pytest.mark.xdist_group("memory")]

SCRIPT = Path(__file__).resolve().parents[3] / "benchmark/marconi/demo.py"


def test_the_quick_demo_compares_four_servers_and_says_who_won(tmp_path):
    command = [sys.executable, SCRIPT, "--models", tiny_model(), "--out", tmp_path, "--quick"]
    words = ["--workload", "clients", "shared-prefix", "chat", "--start-seconds", "900"]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {(row["workload"], row["server"]) for row in rows} == {
        (workload, server) for workload in ("clients", "shared-prefix", "chat") for server in TITLES
    }
    for row in rows:
        assert row["requests"] > 0 and 0 <= row["token_hit_rate"] < 1
        assert row["requests_per_s"] > 0 and row["cpu_seconds_a_request"] > 0
        assert (row["evictions"] is None) == (row["server"] == "stock")
    assert len({row["memory_bytes"] for row in rows}) == 1
    prompted = {row["prompt_tokens"] for row in rows if row["workload"] == "clients"}
    assert len(prompted) == 1, "every server was sent the same"
    assert done.stdout.count("against stock LRU") >= 3
    for name in ("table.md", "comparison.png", "comparison.svg"):
        assert (tmp_path / name).stat().st_size > 0
