"""What policies save in the fifteen cells, a panel a capacity, a line of dots a trace."""

from __future__ import annotations

from typing import Any

from rows.cells import CELLS
from rows.pictures.panels import FAINT, LINES
from rows.store import Rows

NAME = "saved-at-three-sizes"
_CAPACITIES = ("starved", "middle", "ample")


def data(rows: Rows) -> dict[str, Any]:
    """By capacity and trace: GiB, and the FLOPs saved of each line, in %.

    Raises:
        ValueError: a cell lacks a policy.
    """
    found: dict[str, Any] = {}
    for capacity in _CAPACITIES:
        for trace, sizes in CELLS.items():
            at = f"policies/{trace}/{capacity}"
            values = {}
            for key in LINES:
                identity = f"{at}/{key.replace('_', '-')}"
                if not rows.has(identity, "flops_saved"):
                    raise ValueError(f"there is no row {identity!r}")
                values[key] = round(rows.number(identity, "flops_saved"), 2)
            found.setdefault(capacity, {})[trace] = {"gib": sizes[capacity], "saved": values}
    return found


def message(found: dict[str, Any]) -> str:
    """What the picture shows, as far as its numbers say it."""
    gains = {
        capacity: [
            cell["saved"]["policy_3_one_memory"] - cell["saved"]["lru"] for cell in cells.values()
        ]
        for capacity, cells in found.items()
    }
    means = {capacity: sum(values) / len(values) for capacity, values in gains.items()}
    starved, middle, ample = (f"{means[capacity]:+.0f}" for capacity in _CAPACITIES)
    return f"Policy 3 in one memory against stock LRU: {starved}, {middle} and {ample} points"


def draw(found: dict[str, Any]) -> Any:
    """Three panels under each other that share the axis of FLOPs saved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 8.2))
    axes = figure.subplots(len(found), 1, sharex=True)
    figure.subplots_adjust(left=0.27, right=0.97, top=0.86, bottom=0.07, hspace=0.3)
    figure.suptitle(message(found), x=0.02, y=0.985, ha="left", fontsize=13, fontweight="bold")
    for axis, (capacity, cells) in zip(axes, found.items(), strict=True):
        for place, cell in enumerate(reversed(cells.values())):
            values = cell["saved"]
            axis.plot(
                [min(values.values()), max(values.values())],
                *([[place, place]]),
                **{"color": "#d0d5db", "linewidth": 5, "solid_capstyle": "round", "zorder": 1},
            )
            for key, value in values.items():
                look = LINES[key]
                hollow = {"markerfacecolor": "white"} if key == "lru" else {}
                axis.plot(
                    *([value], [place], look.marker),
                    **{"color": look.colour, "markersize": 8, "markeredgewidth": 1.8, **hollow},
                )
        names = [f"{trace}, {cell['gib']:g} GiB" for trace, cell in cells.items()]
        axis.set_yticks(range(len(names)), list(reversed(names)))
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.set_xlim(0, 100)
        axis.grid(axis="x")
        axis.grid(visible=False, axis="y")
        axis.set_title(f"{capacity} memory")
    axes[-1].set_xlabel("prefill FLOPs saved, %")
    _names(figure, axes[0])
    return figure


def _names(figure: Any, axis: Any) -> None:
    """A line of marks and their names above the panels."""
    handles = [
        axis.plot(
            *([], [], look.marker),
            **{"color": look.colour, "markersize": 8, "markeredgewidth": 1.8, "label": look.title},
            **({"markerfacecolor": "white"} if key == "lru" else {}),
        )[0]
        for key, look in LINES.items()
    ]
    legend = figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.01, 0.955),
        ncols=len(handles),
        frameon=False,
        fontsize=9.5,
        handletextpad=0.2,
        columnspacing=1.4,
    )
    for text, look in zip(legend.get_texts(), LINES.values(), strict=True):
        text.set_color("#5c636b" if look.colour == FAINT else look.colour)
