"""Exports the counters to Prometheus, as SGLang's own ``--enable-metrics`` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang.srt.mem_cache.marconi.insight.stats import MarconiStats

_PREFIX = "sglang:marconi_"


class PrometheusExporter:
    """Counters that follow a :class:`MarconiStats`; call it to add what came since the last call.

    It is called for every request, so the child of each label set is looked up once.

    Must be made after SGLang set ``PROMETHEUS_MULTIPROC_DIR``, which holds in every scheduler
    process.

    Args:
        labels: label names and values of this process.
        registry: where the counters live; the default registry where ``None``.
    """

    def __init__(self, labels: Mapping[str, str], registry: Any = None) -> None:
        from prometheus_client import REGISTRY, Counter, Gauge

        self._labels = dict(labels)
        registry = REGISTRY if registry is None else registry
        names = tuple(labels)
        self._counters: dict[str, Any] = {
            name: Counter(_PREFIX + name, text, names + extra, registry=registry)
            for name, (text, extra) in _METRICS.items()
        }
        #: Of each counter and label set that was ever above 0: its child, and the value it shows.
        self._shown: dict[tuple[str, ...], tuple[Any, float]] = {}
        self._weight = Gauge(
            _PREFIX + "eff_weight",
            "Weight of FLOP efficiency in force; 0 under LRU.",
            names,
            registry=registry,
            multiprocess_mode="mostrecent",
        ).labels(**self._labels)
        self._shown_weight: float | None = None

    def __call__(self, stats: MarconiStats) -> None:
        if stats.eff_weight != self._shown_weight:
            self._shown_weight = stats.eff_weight
            self._weight.set(stats.eff_weight)
        for key, name in _PLAIN:
            self._show(key, getattr(stats, name))
        for (pool, kind), count in stats.victims.items():
            self._show(("victims", pool, kind), count)
        for reason, tokens in stats.lost_tokens.items():
            self._show(("lost_tokens", reason), tokens)
        for said, count in stats.hints.items():
            self._show(("hints", said), count)
        for pool, count in stats.fallbacks.items():
            self._show(("lru_fallbacks", pool), count)

    def _show(self, key: tuple[str, ...], value: float) -> None:
        """Bring one counter up to ``value``; ``key`` is its name and the values of its labels."""
        known = self._shown.get(key)
        if known is None:
            if not value:
                return
            name, *values = key
            child = self._counters[name].labels(*self._labels.values(), *values)
            known = child, 0.0
        child, shown = known
        if value > shown:
            child.inc(value - shown)
            self._shown[key] = child, value


#: What each counter says, and its labels beside those of the process.
_METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "requests": ("Requests counted.", ()),
    "input_tokens": ("Prompt tokens of counted requests.", ()),
    "hit_tokens": ("Prompt tokens that needed no prefill.", ()),
    "flops_saved": ("Prefill FLOPs that hits saved.", ()),
    "victims": ("Evictions, by the pool that was short and what was taken.", ("pool", "kind")),
    "evicted_bytes": ("Bytes given up by evictions.", ()),
    "states_taken_back": ("States that judicious admission did not leave in the cache.", ()),
    "prefill_cuts": ("Prefill forwards that judicious admission ended at a branch point.", ()),
    "backups_skipped": ("States that left the device and were not worth a copy on the host.", ()),
    "evicted_flops": ("FLOPs of recomputing what evictions gave up.", ()),
    "lost_tokens": ("Prompt tokens seen before and prefilled again, by reason.", ("reason",)),
    "hints": ("Requests and sessions of which it was said what follows, by what.", ("hint",)),
    "lru_fallbacks": ("Decisions left to LRU because scoring failed.", ("pool",)),
    "errors": ("Errors in keeping the cache's counters or its view of the tree.", ()),
    "view_rebuilds": ("Times that the view was built anew after a lost event of the tree.", ()),
    "tuner_answers": ("Windows of requests that the tuner looked back at.", ()),
    "tuner_failures": ("Deaths, time-outs and unreadable answers of the tuner.", ()),
    "tuner_restarts": ("Times that the tuner was started again.", ()),
    "adoptions": ("Changes of the weight in force.", ()),
}

#: Counters without labels of their own, and the attribute that each follows.
_PLAIN: tuple[tuple[tuple[str], str], ...] = tuple(
    ((name,), {"evicted_bytes": "bytes_evicted", "evicted_flops": "flops_evicted"}.get(name, name))
    for name, (_, extra) in _METRICS.items()
    if not extra
)
