"""Values of many configurations side by side: a box where there are enough, else every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pictures.style import Look

#: Fewer values than this are drawn one by one.
ENOUGH_FOR_A_BOX = 5
#: Share of a category's width that its boxes fill.
FILLED = 0.8
WIDEST = 0.16

#: Ticks of a ratio, coarse to fine: the first steps that put four on an axis are taken.
_RATIO_TICKS = (
    [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0],
    [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0],
    [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0],
    [round(0.1 * k, 1) for k in range(1, 40)],
    [round(0.05 * k, 2) for k in range(1, 40)],
    [round(0.02 * k, 2) for k in range(1, 100)],
)

Values = Mapping[str, Mapping[Look, Sequence[float]]]


def draw_boxes(axes: Any, values: Values, looks: Sequence[Look]) -> None:
    """Grouped boxes: categories along the axis, the looks side by side in their order.

    A box spans the quartiles, its line is the median, its whiskers are P5 and P95, its marker the
    mean. A line across marks a ratio of one.
    """
    width = min(FILLED / max(len(looks), 1), WIDEST)
    for place, of_category in enumerate(values.values()):
        for look, found in of_category.items():
            shift = (looks.index(look) + 0.5 - len(looks) / 2) * width
            _draw_one(axes, place + shift, 0.82 * width, look, found)
    axes.axhline(1.0, color="#495057", linewidth=1.1, zorder=1)
    axes.set_xticks(range(len(values)), list(values))
    axes.set_xlim(-0.55, len(values) - 0.45)
    axes.grid(axis="x", visible=False)


def _draw_one(axes: Any, x: float, width: float, look: Look, found: Sequence[float]) -> None:
    if len(found) >= ENOUGH_FOR_A_BOX:
        axes.boxplot(
            [found],
            positions=[x],
            widths=width,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": look.colour, "alpha": 0.45, "edgecolor": look.colour},
            medianprops={"color": "#111111"},
            whiskerprops={"color": look.colour},
            capprops={"color": look.colour},
        )
        marks = [fmean(found)]
    else:
        axes.vlines(x, min(found), max(found), color=look.colour, linewidth=1.3)
        marks = list(found)
    axes.plot([x] * len(marks), marks, **{**look.as_line(), "linestyle": "none"})


def ratio_axis(axes: Any, quantity: str) -> None:
    """A logarithmic axis of ratios with plain numbers, so that a half and a double look alike."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    low, high = min(low, 0.95), max(high, 1.05)
    axes.set_ylim(low, high)
    ticks = next(
        (kept for steps in _RATIO_TICKS if len(kept := [x for x in steps if low <= x <= high]) > 3),
        [1.0],
    )
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(quantity)
