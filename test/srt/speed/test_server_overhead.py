"""What the overhead benchmark sends, and how it reads SGLang's metrics; no server."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from speed.server import (
    common_flags,
    cost_table,
    launch_table,
    parse_arguments,
    scheduler_metrics,
    sessions,
    take,
)

METRICS = b"""# TYPE sglang:eviction_duration_seconds histogram
sglang:eviction_duration_seconds_sum{dp_rank="0"} 0.02
sglang:eviction_duration_seconds_bucket{dp_rank="0",le="0.001"} 3.0
sglang:eviction_duration_seconds_bucket{dp_rank="0",le="0.002"} 5.0
sglang:eviction_duration_seconds_bucket{dp_rank="0",le="0.005"} 6.0
sglang:eviction_duration_seconds_bucket{dp_rank="0",le="0.01"} 8.0
sglang:eviction_duration_seconds_bucket{dp_rank="0",le="+Inf"} 8.0
sglang:eviction_duration_seconds_count{dp_rank="0"} 8.0
# TYPE sglang:scheduler_stage_seconds counter
sglang:scheduler_stage_seconds_total{category="idle",forward_overlap="none"} 7.0
sglang:scheduler_stage_seconds_total{category="run_batch",forward_overlap="none"} 0.05
sglang:scheduler_stage_seconds_total{category="process_queue",forward_overlap="none"} 0.01
sglang:scheduler_stage_seconds_total{category="recv_requests",forward_overlap="none"} 0.005
"""


class Metrics(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(METRICS)

    def log_message(self, *arguments: object) -> None: ...


def test_a_turn_continues_the_one_before_and_no_other():
    turns = take(sessions(turns=3, prompt_tokens=128, output_tokens=2), 200)
    assert [turn.index for turn in turns] == list(range(200))
    last = {}
    for turn in turns:
        ids = turn.request.prompt_ids
        assert turn.request.input_length // 64 == len(ids)
        before = last.get(turn.session)
        if before is None:
            assert turn.request.input_length == 128
        else:
            assert ids[: len(before)] == before and len(ids) == len(before) + 2
        last[turn.session] = ids
    assert len({ids[0] for ids in last.values()}) == len(last)


def test_what_the_scheduler_did_is_read_off_the_metrics():
    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        Thread(target=server.handle_request).start()
        found = scheduler_metrics(f"http://127.0.0.1:{server.server_port}")
    assert found["calls"] == 8 and found["seconds"] == 0.02
    assert found["forward"] == 0.05 and round(found["rest"], 6) == 0.015
    run = {"requests": 5, "cpu_seconds": 0.1, "seconds": 2.0, "scheduler": found}
    rates = {"stock": ((10.0, 20.0), (10.0, 10.0)), "policy-1": ((9.0, 10.0), (8.0, 7.0))}
    rows = [
        {**run, "server": name, "launch": launch, "run": number, "requests_per_s": rate}
        for name, launches in rates.items()
        for launch, each in enumerate(launches)
        for number, rate in enumerate(each)
    ]
    table = cost_table(rows, list(rates))
    stock = ["stock", "1.000", "20.00", "10.00", "3.00"]
    assert table[1] == [*stock, "32", "2.500", "20", "12", "8", "0", "1.00"]
    assert table[2][:2] == ["policy-1", "0.750"]
    assert table[0][7:11] == ["over 1 ms", "over 2 ms", "over 5 ms", "over 10 ms"]
    assert launch_table(rows, list(rates))[2] == ["policy-1", "0.700", "0.750", "0.725"]


@pytest.mark.parametrize(
    ("mode", "flag"),
    [("unified", "--enable-unified-memory"), ("hicache", "--enable-hierarchical-cache")],
)
def test_a_mode_gives_all_servers_the_same_memory(mode, flag):
    static = common_flags(parse_arguments(["--model", "x"]))
    flags = common_flags(parse_arguments(["--model", "x", "--mode", mode]))
    assert flag not in static and flags[: len(static)] == static and flag in flags
    assert "--disable-overlap-schedule" not in flags


def test_sizes_must_be_positive(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--model", "x", "--repeats", "0"])
    assert "--repeats is 0; allowed is 1 or more" in capsys.readouterr().err
