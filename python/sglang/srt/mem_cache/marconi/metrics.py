"""Exports the counters to Prometheus, as SGLang's own ``--enable-metrics`` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang.srt.mem_cache.marconi.stats import MarconiStats

_PREFIX = "sglang:marconi_"


class PrometheusExporter:
    """Counters that follow a :class:`MarconiStats`; call it to add what came since the last call.

    Must be made after SGLang set ``PROMETHEUS_MULTIPROC_DIR``, which holds in every scheduler
    process.

    Args:
        labels: label names and values of this process.
        registry: where the counters live; the default registry where ``None``.
    """

    def __init__(self, labels: Mapping[str, str], registry: Any = None) -> None:
        from prometheus_client import REGISTRY, Counter, Gauge

        names = tuple(labels)
        self._labels = dict(labels)
        self._last: dict[tuple[str, tuple[str, ...]], float] = {}
        self._counters: dict[str, Any] = {
            name: Counter(
                _PREFIX + name,
                text,
                names + extra,
                registry=REGISTRY if registry is None else registry,
            )
            for name, text, extra in _METRICS
        }
        self._eff_weight: Any = Gauge(
            _PREFIX + "eff_weight",
            "Weight of FLOP efficiency in force; 0 under LRU.",
            names,
            registry=REGISTRY if registry is None else registry,
            multiprocess_mode="mostrecent",
        )

    def __call__(self, stats: MarconiStats) -> None:
        self._eff_weight.labels(**self._labels).set(stats.eff_weight)
        for name, values, value in samples(stats):
            key = (name, tuple(values.values()))
            added = value - self._last.get(key, 0.0)
            if added > 0:
                self._last[key] = value
                self._counters[name].labels(**self._labels, **values).inc(added)


_METRICS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("requests", "Requests counted.", ()),
    ("input_tokens", "Prompt tokens of counted requests.", ()),
    ("hit_tokens", "Prompt tokens that needed no prefill.", ()),
    ("flops_saved", "Prefill FLOPs that hits saved.", ()),
    ("victims", "Evictions, by the pool that was short and what was taken.", ("pool", "kind")),
    ("evicted_bytes", "Bytes given up by evictions.", ()),
    ("evicted_flops", "FLOPs of recomputing what evictions gave up.", ()),
    ("lost_tokens", "Prompt tokens seen before and prefilled again, by reason.", ("reason",)),
    ("lru_fallbacks", "Decisions left to LRU because scoring failed.", ("pool",)),
    ("errors", "Errors in keeping the cache's counters or its view of the tree.", ()),
    ("tuner_answers", "Windows of requests that the tuner looked back at.", ()),
    ("tuner_failures", "Deaths, time-outs and unreadable answers of the tuner.", ()),
    ("tuner_restarts", "Times that the tuner was started again.", ()),
    ("adoptions", "Changes of the policy or weight in force.", ()),
)


def samples(stats: MarconiStats) -> list[tuple[str, dict[str, str], float]]:
    """Every counter as (name, its own labels, value since the start)."""
    plain = [
        ("requests", stats.requests),
        ("input_tokens", stats.input_tokens),
        ("hit_tokens", stats.hit_tokens),
        ("flops_saved", stats.flops_saved),
        ("evicted_bytes", stats.bytes_evicted),
        ("evicted_flops", stats.flops_evicted),
        ("errors", stats.errors),
        ("tuner_answers", stats.tuner_answers),
        ("tuner_failures", stats.tuner_failures),
        ("tuner_restarts", stats.tuner_restarts),
        ("adoptions", stats.adoptions),
    ]
    result: list[tuple[str, dict[str, str], float]] = [
        (name, {}, float(value)) for name, value in plain
    ]
    for (pool, kind), count in stats.victims.items():
        result.append(("victims", {"pool": pool, "kind": kind}, float(count)))
    for reason, tokens in stats.lost_tokens.items():
        result.append(("lost_tokens", {"reason": reason}, float(tokens)))
    for pool, count in stats.fallbacks.items():
        result.append(("lru_fallbacks", {"pool": pool}, float(count)))
    return result
