"""The comparison as a picture: one row a workload, one colour a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from demo_measures import Measures
from demo_report import LRU, MARCONI, WITNESS, Comparison, eviction_kinds

matplotlib.use("Agg")

from matplotlib import pyplot as plt

COLOURS = {LRU: "#8a94a6", MARCONI: "#d9480f"}
NAMES = {LRU: "stock LRU", MARCONI: "Marconi"}
BAR = 0.38
KIND_LABELS = {
    "leaf_kv_only": "leaf:\nKV only",
    "leaf_with_state": "leaf: KV\nand state",
    "state_only": "state only,\nKV kept",
}
POOL_LABELS = {"kv": "KV short", "state": "states short"}


def draw(comparisons: Sequence[Comparison], caption: str, png: Path, svg: Path) -> None:
    """Draw all comparisons and save the picture in both formats."""
    figure, grid = plt.subplots(
        len(comparisons),
        4,
        figsize=(15, 3.7 * len(comparisons) + 1.3),
        squeeze=False,
        gridspec_kw={"width_ratios": [1.15, 1.6, 1.15, 2.0]},
    )
    for row, comparison in zip(grid, comparisons, strict=True):
        _draw_row(row, comparison)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in COLOURS]
    figure.legend(
        handles,
        [NAMES[name] for name in COLOURS],
        loc="upper center",
        ncols=2,
        fontsize=13,
        frameon=False,
    )
    figure.text(0.5, 0.012, caption, ha="center", fontsize=9, color="#555555")
    figure.tight_layout(rect=(0, 0.035, 1, 0.955), h_pad=2.6, w_pad=2.0)
    figure.savefig(png, dpi=130)
    figure.savefig(svg)
    plt.close(figure)


def _draw_row(row: Sequence[Any], comparison: Comparison) -> None:
    lru, marconi = comparison.measures[LRU], comparison.measures[MARCONI]
    hits, ttft, speed, evicted = row
    hits.set_title(comparison.title, fontsize=13, fontweight="bold", loc="left", pad=14)
    _bars(
        hits,
        ["tokens hit", "prefill FLOPs\nsaved"],
        [100 * lru.token_hit_rate, 100 * lru.flops_saved_fraction],
        [100 * marconi.token_hit_rate, 100 * marconi.flops_saved_fraction],
        "share of all prompts, %\n(higher is better)",
        "{:.1f}",
    )
    _bars(
        ttft,
        ["mean", "P50", "P95", "P99"],
        _ttfts(lru),
        _ttfts(marconi),
        "time to first token, ms\n(lower is better)",
        "{:.0f}",
    )
    _bars(
        speed,
        ["input", "output"],
        [lru.input_throughput, lru.output_throughput],
        [marconi.input_throughput, marconi.output_throughput],
        "tokens per second\n(higher is better)",
        "{:.0f}",
    )
    hits.set_ylim(0, 100)
    counted = comparison.measures.get(WITNESS, lru).evictions or {}
    ours = marconi.evictions or {}
    kinds = eviction_kinds(comparison.measures)
    _bars(
        evicted,
        [_kind_label(kind) for kind in kinds],
        [counted.get(kind, 0) for kind in kinds],
        [ours.get(kind, 0) for kind in kinds],
        "evictions by kind\n(LRU's from policy 1)",
        "{:.0f}",
    )


def _kind_label(kind: str) -> str:
    pool, _, what = kind.partition(":")
    return f"{POOL_LABELS.get(pool, pool)}\n{KIND_LABELS.get(what, what)}"


def _ttfts(measures: Measures) -> list[float]:
    return [measures.ttft_mean, measures.ttft_p50, measures.ttft_p95, measures.ttft_p99]


def _bars(
    axes: Any,
    labels: Sequence[str],
    lru: Sequence[float],
    marconi: Sequence[float],
    quantity: str,
    number: str,
) -> None:
    for name, values, shift in ((LRU, lru, -BAR / 2), (MARCONI, marconi, BAR / 2)):
        places = [index + shift for index in range(len(labels))]
        bars = axes.bar(places, values, BAR * 0.94, color=COLOURS[name])
        axes.bar_label(bars, [number.format(value) for value in values], fontsize=9, padding=2)
    axes.set_xticks(range(len(labels)), labels, fontsize=9 if len(labels) < 4 else 8)
    axes.set_ylabel(quantity, fontsize=10)
    axes.margins(y=0.16)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
