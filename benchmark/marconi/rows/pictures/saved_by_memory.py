"""The first picture: what five choices save over the size of memory, a panel a trace."""

from __future__ import annotations

from typing import Any

from rows.cells import CELLS
from rows.pictures.panels import LINES, name_lines, short_gib, spread
from rows.store import Rows
from rows.tables.lab import curve_points

NAME = "saved-by-memory"
FEWEST_SIZES = 3


def data(rows: Rows) -> dict[str, Any]:
    """By trace: sizes, and each line's share of what a cache without eviction saves, in %.

    Raises:
        ValueError: no trace has sizes enough for a line.
    """
    found: dict[str, Any] = {}
    for trace in CELLS:
        points = curve_points(rows, trace)
        if len(points) < FEWEST_SIZES:
            continue
        most = rows.number(f"policies/{trace}/ample/infinite", "flops_saved")
        found[trace] = {
            "sizes": list(points),
            "most": most,
            "lines": {
                key: [round(100 * point[key] / most, 2) for point in points.values()]
                for key in LINES
            },
        }
    if not found:
        raise ValueError(f"part 'by-memory' has {FEWEST_SIZES} sizes of no trace")
    return found


def message(found: dict[str, Any]) -> str:
    """What the picture shows, as far as its numbers say it."""
    pairs = [
        (best, lru)
        for panel in found.values()
        for best, lru in zip(
            panel["lines"]["policy_3_one_memory"], panel["lines"]["lru"], strict=True
        )
    ]
    ahead = sum(best > lru for best, lru in pairs)
    where = "at every size" if ahead == len(pairs) else f"at {ahead} of {len(pairs)} sizes"
    return f"Policy 3 in one memory saves more prefill than stock LRU {where}"


def draw(found: dict[str, Any]) -> Any:
    """Panels in two columns that share the vertical axis; every line is named at its end."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(9.2, 9.4))
    axes = figure.subplots(3, 2, sharey=True).flat
    figure.subplots_adjust(left=0.06, right=0.80, top=0.905, bottom=0.06, wspace=0.72, hspace=0.42)
    figure.suptitle(message(found), x=0.06, y=0.985, ha="left", fontsize=13, fontweight="bold")
    figure.text(
        *(0.06, 0.947),
        "Prefill FLOPs saved, in % of what a cache without eviction saves; higher is better",
        fontsize=10,
    )
    panels = list(axes)
    for place, (axis, (trace, panel)) in enumerate(zip(panels, found.items(), strict=False)):
        sizes = panel["sizes"]
        for key, values in panel["lines"].items():
            axis.plot(sizes, values, **LINES[key].style())
        axis.set_title(trace)
        axis.set_xscale("log")
        axis.set_ylim(0, 104)
        axis.set_xlim(sizes[0] * 0.93, sizes[-1] * 1.06)
        ticks = sizes if len(sizes) < 5 else sizes[::2]
        axis.xaxis.set_major_locator(FixedLocator(ticks))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticklabels(list(map(short_gib, ticks)))
        axis.tick_params(labelleft=place % 2 == 0)
        axis.set_xlabel("memory for the cache, GiB")
        ends = {key: values[-1] for key, values in panel["lines"].items()}
        places = spread({key: end / 104 for key, end in ends.items()}, 0.085, 0.03, 0.98)
        name_lines(axis, sizes[-1], ends, places, LINES)
    for axis in panels[len(found) :]:
        axis.set_axis_off()
    for axis in panels[len(found) : len(found) + 1]:
        look = {"transform": axis.transAxes, "fontsize": 9.5, "va": "top", "linespacing": 1.5}
        axis.text(0.0, 0.98, _NOTE, **look)
    return figure


_NOTE = """Real traces on block hashes, one request at a
time, with the costs of Qwen3-Next-80B-A3B.

Policy 2, the paper: at each size the best of the
weights 0, 0.25, 0.5, 1 and 2, picked afterwards.

One memory: states and KV share all bytes; the
other lines have SGLang's default split.

Clairvoyant: knows all later requests, and has
the default split."""
