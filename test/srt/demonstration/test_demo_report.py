"""The demo's figures, lines, rows and picture, from requests made up here."""

from __future__ import annotations

import json
import os
import time
from itertools import pairwise

import pytest
from demonstration import load as demo_load
from demonstration.contenders import ONE_MEMORY, PAPER, STOCK, VALUE
from demonstration.figure import COLOURS, draw
from demonstration.load import ForeignLoad
from demonstration.measures import (
    Ratio,
    counted_since,
    measure,
    quantile,
    rate_ratio,
    victims_since,
)
from demonstration.report import Comparison, rows, table, verdict
from demonstration.served import Run, Served
from demonstration.shared_prefix import parse_run
from matplotlib.colors import to_rgb

COUNTERS = {"victims": {"state:state_only": 3}, "lost_tokens": {"kv_evicted": 70}}
NOTHING = {"victims": {}, "lost_tokens": {}}


def comparison(hits: dict[str, float], exact: bool = False, seconds=(5.0, 5.0)) -> Comparison:
    """Servers that hit so many of 1,000 tokens; all but stock are faster, the more they hit."""
    measures = {}
    for name, hit in hits.items():
        served = [Served(1000, round(10 * hit), 5, (200 - hit) / 1000, 0.1) for _ in range(50)]
        faster = 1 + (hit - hits[STOCK]) / 100
        runs = [Run(served, one / faster, 2.0) for one in seconds]
        counters = (None, None) if name == STOCK else (NOTHING, COUNTERS)
        measures[name] = measure(runs, float, *counters)
    return Comparison("clients", "Clients", measures, exact)


def test_the_verdict_says_who_won_by_how_much_and_who_lost():
    text = verdict(comparison({STOCK: 50, PAPER: 40, VALUE: 60, ONE_MEMORY: 75}))
    assert "\n" not in text
    assert "Clients: policy 3 in one memory WINS, 75.0 %" in text and "stock LRU 50.0 %" in text
    assert "policy 3 in one memory +25.0, policy 3 +10.0, the paper (policy 2) -10.0" in text
    assert "hit rate 75.0 % against 50.0 % (+25.0 points)" in text
    assert "requests/s x 1.25 (1.25 to 1.25 in 2 rounds)" in text
    assert "TTFT P50 125 ms against 150 (x 0.83), CPU a request x 1.00." in text


def test_the_verdict_says_when_stock_wins():
    text = verdict(comparison({STOCK: 50, PAPER: 40, VALUE: 45}))
    assert "stock LRU WINS, 50.0 %" in text and "closest is policy 3." in text
    assert "policy 3 -5.0, the paper (policy 2) -10.0" in text and "x 0.95" in text


def test_the_verdict_says_when_nobody_is_ahead_and_who_is_behind_all_the_same():
    text = verdict(comparison({STOCK: 50, PAPER: 30, VALUE: 50.5}))
    assert "a TIE, less than 1 apart, of stock LRU and policy 3" in text
    assert "WIN" not in text and "the paper (policy 2) -20.0" in text
    alike = verdict(comparison({STOCK: 50, VALUE: 70, ONE_MEMORY: 70.5}))
    assert "policy 3 in one memory and policy 3 WIN alike" in alike


def test_times_of_a_busy_machine_are_called_that():
    one = comparison({STOCK: 50, VALUE: 60})
    assert "a busy machine's" in verdict(one, is_busy=True)
    assert "busy" not in verdict(one)


def test_figures_that_repeat_settle_smaller_differences():
    hits = {STOCK: 50, VALUE: 50.5}
    assert "TIE" in verdict(comparison(hits)) and "WINS" in verdict(comparison(hits, exact=True))


def test_the_table_shows_every_figure_and_who_counts_evictions():
    text = table(comparison({STOCK: 50, PAPER: 40, VALUE: 60}))
    assert len({len(line) for line in text.splitlines()}) == 1, "columns are aligned"
    assert "not counted" in text and "60.0 (+10.0)" in text and "40.0 (-10.0)" in text
    for label in ("TTFT P99", "requests/s", "CPU of the server", "states short", "KV was evicted"):
        assert label in text


def test_there_is_a_row_a_server_with_what_all_share():
    found = rows(comparison({STOCK: 50, VALUE: 60}), {"command": "demo", "seed": 0})
    assert [row["server"] for row in found] == [STOCK, VALUE]
    assert all(row["command"] == "demo" and row["workload"] == "clients" for row in found)
    assert found[1]["flops_saved_fraction"] == pytest.approx(0.6)
    assert found[1]["points_saved_against_stock"] == pytest.approx(10)
    assert found[1]["requests_per_s_against_stock"]["middle"] == pytest.approx(1.1)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found, allow_nan=False))


def test_measures_by_hand():
    served = [Served(100, 40, 10, 0.010, 0.1), Served(300, 0, 10, 0.030, 0.1)]
    result = measure([Run(served[:1], 0.5, 0.2), Run(served[1:], 1.5, 0.4)], lambda n: n**2)
    assert result.token_hit_rate == 0.1 and result.flops_saved_fraction == 1600 / 100_000
    assert result.ttft_mean == pytest.approx(20) and result.ttft_p50 == pytest.approx(20)
    assert result.input_throughput == 200 and result.output_throughput == 10
    assert result.requests_per_s == 1 and result.run_rates == (2, pytest.approx(2 / 3))
    assert result.cpu_seconds_a_request == pytest.approx(0.3)
    assert result.evictions is None and result.lost_tokens is None
    assert quantile([1.0, 2.0, 4.0], 0.75) == 3.0
    assert victims_since({"victims": {"a": 1}}, {"victims": {"a": 3, "b": 1}}) == {"a": 2, "b": 1}
    assert counted_since("lost_tokens", NOTHING, COUNTERS) == {"kv_evicted": 70}


def test_rates_are_compared_within_a_round():
    """The machine was half as fast in the second round: the ratios do not see it."""
    slow = comparison({STOCK: 50, VALUE: 60}, seconds=(5.0, 10.0))
    ratio = rate_ratio(slow.measures[VALUE], slow.measures[STOCK])
    assert (ratio.low, ratio.high) == (pytest.approx(1.1), pytest.approx(1.1))
    assert Ratio(1.2, 1.1, 1.3).clear and Ratio(0.8, 0.7, 0.9).clear
    assert not Ratio(1.1, 0.9, 1.3).clear and not Ratio(1.1, 1.1, 1.1).clear


def test_reads_bench_serving_and_leaves_out_failed_requests():
    result = {
        "input_lens": [10, 20],
        "cached_tokens": [0, 8],
        "ttfts": [0.5, 0.0],
        "itls": [[0.125, 0.125], []],
        "errors": ["", "refused"],
        "duration": 3.0,
    }
    run = parse_run(result, output_length=3)
    assert run.served == [Served(10, 0, 3, 0.5, 0.75)] and run.seconds == 3.0


def test_own_work_is_not_foreign(monkeypatch):
    """The clock is the process's own: what it burns itself counts as nobody else's."""
    machine = demo_load.psutil.cpu_times()
    monkeypatch.setattr(demo_load.psutil, "cpu_times", lambda: machine)
    with ForeignLoad() as alone:
        deadline = time.process_time() + 0.05
        while time.process_time() < deadline:
            os.getpid()
    assert alone.cores == 0.0 and "OTHER PROGRAMS" not in str(alone)
    later = machine._replace(user=machine.user + 1000.0)
    with ForeignLoad() as beside:
        monkeypatch.setattr(demo_load.psutil, "cpu_times", lambda: later)
    assert beside.cores > 0 and "OTHER PROGRAMS USED" in str(beside)


def test_the_picture_holds_every_share_and_its_colours_differ_in_grey(tmp_path):
    one = comparison({STOCK: 50, PAPER: 40, VALUE: 60, ONE_MEMORY: 75})
    other = Comparison("chat", "Chat", {**one.measures})
    png, svg = tmp_path / "a.png", tmp_path / "a.svg"
    draw([one, other], "A caption", png, svg)
    assert png.read_bytes().startswith(b"\x89PNG") and "<svg" in svg.read_text()
    grey = [
        sum(w * c for w, c in zip((0.299, 0.587, 0.114), to_rgb(v), strict=True))
        for v in COLOURS.values()
    ]
    assert all(a - b > 0.08 for a, b in pairwise(grey)), grey
