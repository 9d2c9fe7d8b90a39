"""The comparison as a picture: a row a workload, a bar a server, the prefill saved first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from demonstration.contenders import ONE_MEMORY, PAPER, STOCK, TITLES, VALUE
from demonstration.measures import Measures, rate_ratio
from demonstration.report import Comparison

matplotlib.use("Agg")

from matplotlib import pyplot as plt

#: Told apart by the colour-blind, and in grey, where each is darker than the one before.
COLOURS = {STOCK: "#c3c9d0", PAPER: "#e6a23c", VALUE: "#3a87b7", ONE_MEMORY: "#12344f"}
INK, FAINT, TRACK = "#1d2733", "#66717e", "#f1f3f5"
BAR = 0.68
STYLE = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "svg.hashsalt": "marconi",
}


def draw(comparisons: Sequence[Comparison], caption: str, png: Path, svg: Path) -> None:
    """Draw all comparisons and save the picture in both formats."""
    servers = max(len(one.measures) for one in comparisons)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(comparisons),
            3,
            figsize=(14, (0.52 * servers + 1.35) * len(comparisons) + 0.7),
            squeeze=False,
            gridspec_kw={"width_ratios": [1.5, 1.0, 1.15]},
        )
        for row, comparison in zip(grid, comparisons, strict=True):
            _draw_row(row, comparison)
        figure.text(0.012, 0.014, caption, ha="left", fontsize=9, color=FAINT)
        height = figure.get_figheight()
        figure.tight_layout(rect=(0, 0.55 / height, 1, 1), h_pad=2.4, w_pad=2.2)
        figure.savefig(png, dpi=130)
        figure.savefig(svg, metadata={"Date": None})
        plt.close(figure)


def _draw_row(row: Sequence[Any], comparison: Comparison) -> None:
    names = list(comparison.measures)
    stock = comparison.measures[STOCK]
    saved, rate, ttft = row
    saved.set_title(comparison.title, fontsize=14, fontweight="bold", loc="left", pad=24)

    def points(name: str, measures: Measures) -> str:
        share = 100 * measures.flops_saved_fraction
        gain = 100 * (measures.flops_saved_fraction - stock.flops_saved_fraction)
        return f"{share:.1f} %" + ("" if name == STOCK else f"  ({gain:+.1f})")

    def times(name: str, measures: Measures) -> str:
        text = f"{measures.requests_per_s:.2f}"
        ratio = rate_ratio(measures, stock).middle
        return text if name == STOCK else f"{text}  (× {ratio:.2f})"

    def latency(name: str, measures: Measures) -> str:
        return f"{_seconds(measures.ttft_p50)}, {_seconds(measures.ttft_p95)}"

    saved_values = [100 * comparison.measures[n].flops_saved_fraction for n in names]
    _bars(saved, comparison, saved_values, points, "share of prefill saved, of all FLOPs (points)")
    saved.barh(range(len(names)), 100, BAR, color=TRACK, zorder=0)
    saved.set_xlim(0, 112)
    saved.set_yticks(range(len(names)), [TITLES[n] for n in names], fontsize=11.5)
    saved.tick_params(axis="y", length=0, pad=6)
    rates = [comparison.measures[n].requests_per_s for n in names]
    _bars(rate, comparison, rates, times, "requests per second (× stock's)")
    rate.set_xlim(0, 1.6 * max(rates))
    halves = [comparison.measures[n].ttft_p50 for n in names]
    _bars(ttft, comparison, halves, latency, "time to first token: P50 (bar), P95 (mark)")
    late = [comparison.measures[n].ttft_p95 for n in names]
    ttft.hlines(range(len(names)), halves, late, color=INK, linewidth=1)
    ttft.scatter(late, range(len(names)), marker="|", s=230, color=INK, linewidths=1.6)
    ttft.set_xlim(0, 1.65 * max(late))


def _bars(
    axes: Any,
    comparison: Comparison,
    values: Sequence[float],
    label: Callable[[str, Measures], str],
    quantity: str,
) -> None:
    names = list(comparison.measures)
    places = range(len(names))
    axes.barh(places, values, BAR, color=[COLOURS[name] for name in names])
    ends = values
    if "P95" in quantity:
        ends = [comparison.measures[name].ttft_p95 for name in names]
    for place, name, end in zip(places, names, ends, strict=True):
        text = f" {label(name, comparison.measures[name])}"
        weight = "bold" if max(values) == values[place] and "prefill" in quantity else "normal"
        axes.text(end, place, f" {text}", va="center", fontsize=11, fontweight=weight)
    axes.invert_yaxis()
    axes.set_yticks([])
    axes.set_xticks([])
    axes.text(0, 1.02, quantity, transform=axes.transAxes, fontsize=10.5, color=FAINT, va="bottom")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(FAINT)


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"
