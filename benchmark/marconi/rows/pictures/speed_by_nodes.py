"""How long tree operations take as the cache grows, beside stock's two tree cores."""

from __future__ import annotations

from typing import Any

from rows.pictures.panels import LINES, Line, name_lines, spread
from rows.store import Rows

NAME = "tree-operations-by-nodes"
_OPERATIONS = {
    "match-2048": "match a prompt of 2,048 tokens",
    "unlock-2048": "let go of it",
    "evict-one-inner-state": "evict a state inside a path",
    "evict-one-kv-leaf": "evict a KV leaf",
}
_LINES = {
    "rust": Line("stock, Rust core", "#000000", "o", (0, (1, 1.2))),
    "python": Line("stock, Python core", "#8a929c", "x", (0, (5, 1.5, 1, 1.5))),
    "policy_1": Line("policy 1", "#cc79a7", "v", (0, (2, 1))),
    "policy_2": Line("policy 2", LINES["policy_2"].colour, "s", (0, (4, 1.5))),
    "policy_3": Line("policy 3", LINES["policy_3"].colour, "D", "-", 2.2),
}


def data(rows: Rows) -> dict[str, Any]:
    """By operation: numbers of nodes, and the microseconds of each line.

    Raises:
        ValueError: an operation was not timed at two sizes.
    """
    nodes = sorted({row["nodes"] for row in rows.part("tree-speed")})
    found: dict[str, Any] = {}
    for operation in _OPERATIONS:
        ids = {count: f"tree-speed/{count}/{operation}" for count in nodes}
        there = [count for count, identity in ids.items() if identity in rows.by_id]
        if len(there) < 2:
            raise ValueError(f"part 'tree-speed' has {len(there)} sizes of {operation!r}")
        found[operation] = {
            "nodes": there,
            "lines": {
                name: [rows.number(ids[count], f"{name}.us") for count in there]
                for name in _LINES
                if all(rows.has(ids[count], f"{name}.us") for count in there)
            },
        }
    return found


def draw(found: dict[str, Any]) -> Any:
    """Four panels on the same logarithmic axes."""
    from math import log10

    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 7.0))
    panels = list(figure.subplots(2, 2, sharex=True, sharey=True).flat)
    figure.subplots_adjust(left=0.08, right=0.82, top=0.86, bottom=0.08, wspace=0.72, hspace=0.25)
    figure.suptitle(
        "What Marconi adds to a tree operation hardly grows with the cache",
        **{"x": 0.08, "y": 0.985, "ha": "left", "fontsize": 13, "fontweight": "bold"},
    )
    figure.text(0.08, 0.925, "Microseconds of CPU an operation, both axes logarithmic", fontsize=10)
    most = max(max(v) for panel in found.values() for v in panel["lines"].values())
    least = min(min(v) for panel in found.values() for v in panel["lines"].values())
    low, high = log10(least / 1.4), log10(most * 1.4)
    for place, (axis, (operation, panel)) in enumerate(zip(panels, found.items(), strict=True)):
        for name, values in panel["lines"].items():
            axis.plot(panel["nodes"], values, **_LINES[name].style())
        axis.set_title(_OPERATIONS[operation])
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylim(10**low, 10**high)
        axis.tick_params(labelleft=place % 2 == 0, labelbottom=True)
        if place >= 2:
            axis.set_xlabel("cached prefixes in the tree")
        ends = {name: values[-1] for name, values in panel["lines"].items()}
        heights = {name: (log10(end) - low) / (high - low) for name, end in ends.items()}
        places = spread(heights, 0.085, 0.03, 0.97)
        name_lines(axis, panel["nodes"][-1], ends, places, _LINES)
    return figure
