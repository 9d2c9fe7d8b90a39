"""Counters and their export."""

from __future__ import annotations

import json

from prometheus_client import CollectorRegistry
from sglang.srt.mem_cache.marconi.insight.metrics import PrometheusExporter
from sglang.srt.mem_cache.marconi.insight.stats import (
    MOST_PENDING,
    Lookup,
    MarconiStats,
    VictimKind,
)


class Cost:
    kv_bytes_per_token = 1.0
    state_bytes = 8.0

    def flops(self, start: int, end: int) -> float:
        return float(end - start)


def evict_leaf(stats: MarconiStats, node_id: int) -> None:
    stats.count_victim(
        "kv", VictimKind.LEAF_KV_ONLY, node_id=node_id, resumed=5, depth=5, kv_tokens=5
    )


def filled() -> MarconiStats:
    stats = MarconiStats(Cost())
    stats.count_lookup(Lookup(100, 40, 60, 80, True), flops_saved=4.0, flops_needed=10.0)
    stats.count_lookup(Lookup(100, 0, 50, 50, False), flops_saved=0.0, flops_needed=10.0)
    stats.count_victim("state", VictimKind.STATE_ONLY, node_id=3, resumed=7, depth=9, kv_tokens=0)
    evict_leaf(stats, 4)
    return stats


def test_counters_add_up():
    state = filled().as_dict()
    assert json.loads(json.dumps(state)) == state
    assert state["requests"] == 2 and state["requests_hit"] == 1
    assert state["token_hit_rate"] == 0.2 and state["flops_saved_fraction"] == 0.2
    assert state["lost_tokens"] == {"state_evicted": 20, "kv_evicted": 50, "never_admitted": 20}
    assert state["victims"] == {"kv:leaf_kv_only": 1, "state:state_only": 1}
    assert state["states_evicted"] == 1 and state["kv_tokens_evicted"] == 5
    assert state["bytes_evicted"] == 13.0 and state["flops_evicted"] == 2.0


def test_an_empty_cache_has_rates_of_zero():
    state = MarconiStats(Cost()).as_dict()
    assert state["token_hit_rate"] == state["flops_saved_fraction"] == 0.0


def test_the_exporter_adds_what_came_since_the_last_call():
    registry = CollectorRegistry()
    exporter = PrometheusExporter({"tp_rank": "0"}, registry)
    stats = filled()
    exporter(stats)
    evict_leaf(stats, 4)
    exporter(stats)
    exporter(stats)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"sglang:marconi_{name}", {"tp_rank": "0", **labels})

    assert value("victims_total", pool="kv", kind="leaf_kv_only") == 2
    assert value("evicted_bytes_total") == 18.0
    assert value("hit_tokens_total") == 40
    assert value("lost_tokens_total", reason="kv_evicted") == 50


def test_the_digest_tells_victims_and_their_order_apart():
    digests = set()
    for order in ((1, 2), (2, 1), (1, 3)):
        stats = MarconiStats(Cost())
        for node_id in order:
            evict_leaf(stats, node_id)
        digests.add(stats.victim_digest)
    assert len(digests) == 3
    assert filled().victim_digest == filled().victim_digest


def test_victims_add_up_alike_however_often_somebody_asks():
    asked, unasked = MarconiStats(Cost()), MarconiStats(Cost())
    for node_id in range(3 * MOST_PENDING + 1):
        for stats in (asked, unasked):
            evict_leaf(stats, node_id)
        assert asked.victims == {("kv", "leaf_kv_only"): node_id + 1}
        assert asked.kv_tokens_evicted == asked.bytes_evicted == 5 * (node_id + 1)
    assert asked.as_dict() == unasked.as_dict()
