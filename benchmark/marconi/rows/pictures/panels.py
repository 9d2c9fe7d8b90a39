"""How the documentation's pictures look: colours that all can tell apart, dashes, direct labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INK, FAINT = "#1b1f24", "#8a929c"

#: Of Matplotlib, for every picture.
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "sglang-marconi",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Line:
    """A line's name and look: a colour of Okabe and Ito, and a dash and marker for grey print."""

    title: str
    colour: str
    marker: str
    dash: Any
    width: float = 1.8

    def style(self) -> dict[str, Any]:
        """Arguments of ``Axes.plot``."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.dash,
            "linewidth": self.width,
            "markersize": 5.5,
        }


#: Each policy looks the same in every picture.
LINES = {
    "lru": Line("stock LRU", "#000000", "o", (0, (1, 1.2))),
    "policy_2": Line("policy 2, the paper", "#d55e00", "s", (0, (4, 1.5))),
    "policy_3": Line("policy 3", "#0072b2", "D", "-", 2.2),
    "policy_3_one_memory": Line("policy 3, one memory", "#009e73", "^", "-", 2.2),
    "clairvoyant": Line("clairvoyant", "#8a929c", "x", (0, (5, 1.5, 1, 1.5))),
}


def name_lines(
    axis: Any,
    end: float,
    values: Mapping[str, float],
    places: Mapping[str, float],
    looks: Mapping[str, Line],
) -> None:
    """Write each line's name to the right of its end, with a thin line between.

    Args:
        end: of all lines, on the horizontal axis.
        values: of each line there.
        places: of each name, as a share of the axis' height.
    """
    for name, value in values.items():
        look = looks[name]
        axis.annotate(
            look.title,
            xy=(end, value),
            xytext=(1.09, places[name]),
            textcoords="axes fraction",
            fontsize=9,
            color="#5c636b" if look.colour == FAINT else look.colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                **{"arrowstyle": "-", "color": look.colour, "linewidth": 0.6},
                **{"shrinkA": 1, "shrinkB": 3, "relpos": (0.0, 0.5)},
            },
        )


def spread(places: Mapping[str, float], apart: float, low: float, high: float) -> dict[str, float]:
    """Places of labels on one axis, moved as little as it takes to be ``apart`` of each other.

    Args:
        places: where each label would best be.
        low, high: ends of the axis.
    """
    order = sorted(places, key=lambda name: places[name])
    if not order:
        return {}
    # Groups of labels that touch are moved together to the mean of where they would be.
    groups: list[list[str]] = []
    for name in order:
        groups.append([name])
        while len(groups) > 1 and _bottom(groups[-1], places, apart) < _top(
            groups[-2], places, apart
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    found = {}
    for group in groups:
        start = _bottom(group, places, apart) + apart / 2
        for index, name in enumerate(group):
            found[name] = start + index * apart
    return _within(found, order, apart, low, high)


def _centre(group: Sequence[str], places: Mapping[str, float]) -> float:
    return sum(places[name] for name in group) / len(group)


def _bottom(group: Sequence[str], places: Mapping[str, float], apart: float) -> float:
    return _centre(group, places) - apart * len(group) / 2


def _top(group: Sequence[str], places: Mapping[str, float], apart: float) -> float:
    return _centre(group, places) + apart * len(group) / 2


def _within(
    found: dict[str, float], order: Sequence[str], apart: float, low: float, high: float
) -> dict[str, float]:
    """Push labels inside the axis, from both ends."""
    limit = high
    for name in reversed(order):
        found[name] = min(found[name], limit)
        limit = found[name] - apart
    limit = low
    for name in order:
        found[name] = max(found[name], limit)
        limit = found[name] + apart
    return found


def short_gib(gib: float) -> str:
    """A size as a tick says it."""
    return f"{gib:.3g}" if gib < 1000 else f"{gib / 1000:.3g}k"
