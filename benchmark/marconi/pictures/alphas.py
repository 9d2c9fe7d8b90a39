"""FLOPs saved over alpha, for Marconi on both pools and on the state pool alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pictures.common import (
    Absent,
    Picture,
    bound,
    curve,
    first_panels,
    grid,
    group,
    legend,
    panel_of,
    panel_titles,
    percent,
    place_of,
    place_text,
    places,
    source,
)
from pictures.rows import Row
from pictures.style import family_look

MAX_PLACES = 4
REFERENCES = ("lru", "sglang+", "infinite", "clairvoyant")


def alpha_sweep(rows: Sequence[Row]) -> Picture | Absent:
    """One panel a trace and capacity, one line a set of pools, LRU and the bounds for reference."""
    key, title = "alpha-sweep", "FLOPs saved over alpha"
    panels = {panel: members for panel, members in group(rows, panel_of).items() if _swept(members)}
    panels, note = first_panels(panels)
    if not panels:
        return Absent(
            key, title, "runs of marconi:ALPHA or marconi-state:ALPHA at two alphas or more"
        )
    chosen = {
        panel: places((row for row in members if row.alpha is not None), MAX_PLACES) or [None]
        for panel, members in panels.items()
    }
    figure, axes = grid(len(panels), max(map(len, chosen.values())), width=3.5, height=2.8)
    table: list[tuple[str, ...]] = []
    drawn: list[Row] = []
    for line, panel, name in zip(axes, panels, panel_titles(list(panels)), strict=True):
        for column, one in enumerate(line):
            if column >= len(chosen[panel]):
                one.set_axis_off()
                continue
            place = chosen[panel][column]
            here = [
                row for row in panels[panel] if place_of(row) == place or (row.family == "infinite")
            ]
            used = _draw(one, here)
            drawn += used
            where = "" if place is None else place_text(place)
            one.set_title(f"{name}\n{where}" if column == 0 else where)
            table += [
                (
                    name.replace("\n", ", "),
                    where,
                    row.policy,
                    "–" if row.alpha is None else f"{row.alpha:g}",
                    percent(row.flops_saved),
                    percent(row.token_hit_rate),
                )
                for row in used
            ]
        line[0].set_ylabel("prefill FLOPs saved, %")
    legend(figure)
    caption = (
        "How much the weight of FLOP efficiency matters: alpha 0 is recency alone. Flat lines are "
        "policies without alpha, the bounds included. Each panel has its own vertical scale."
        f"{note} {source(drawn)}"
    )
    columns = ("panel", "memory", "policy", "alpha", "prefill FLOPs saved, %", "token hit rate, %")
    return Picture(key, title, caption, figure, columns, tuple(table))


def _swept(rows: Sequence[Row]) -> bool:
    families = group((row for row in rows if row.alpha is not None), lambda row: row.family)
    return any(len({row.alpha for row in members}) >= 2 for members in families.values())


def _draw(axes: Any, rows: Sequence[Row]) -> list[Row]:
    families = group((row for row in rows if row.alpha is not None), lambda row: row.family)
    used: list[Row] = []
    for members in families.values():
        points = {row.alpha or 0.0: 100 * row.flops_saved for row in members}
        curve(axes, family_look(members[0]), points)
        used += sorted(members, key=lambda row: row.alpha or 0)
    for row in rows:
        if (row.policy in REFERENCES or row.is_tuned) and row.policy not in {
            one.policy for one in used
        }:
            bound(axes, row, 100 * row.flops_saved)
            used.append(row)
    alphas = sorted({row.alpha for row in used if row.alpha is not None})
    axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas], fontsize=9)
    axes.set_xlabel("alpha (weight of FLOP efficiency)")
    return used
