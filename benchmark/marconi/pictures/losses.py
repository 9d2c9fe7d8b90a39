"""What became of every prompt token: hit, lost for one of three reasons, or never seen before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.patches import Patch

from pictures.common import (
    MAX_LINES,
    Absent,
    Picture,
    by_policy,
    first_panels,
    grid,
    group,
    legend,
    panel_of,
    panel_titles,
    place_of,
    place_text,
    places,
    source,
    thinned,
    without_twins,
)
from pictures.rows import LOSSES, Row
from pictures.style import OUTCOMES, look_of

MAX_PLACES = 3
BAR = 0.72


def token_losses(rows: Sequence[Row]) -> Picture | Absent:
    """Stacked bars a policy, one panel a trace and capacity."""
    key, title = "token-losses", "Where tokens are lost"
    panels = {
        panel: members
        for panel, members in group(rows, panel_of).items()
        if any(_is_counted(row) for row in members)
    }
    panels, note = first_panels(panels)
    if not panels:
        return Absent(key, title, "rows with lost_tokens (any policy of the simulator but lru)")
    chosen = {panel: places(members, MAX_PLACES) or [None] for panel, members in panels.items()}
    columns = max(map(len, chosen.values()))
    shown = {
        panel: thinned(by_policy(without_twins(members, keep="server:1")))
        for panel, members in panels.items()
    }
    tallest = max(map(len, shown.values()))
    figure, axes = grid(len(panels), columns, width=4.2, height=0.9 + 0.27 * tallest)
    table: list[tuple[str, ...]] = []
    drawn: list[Row] = []
    for line, panel, name in zip(axes, panels, panel_titles(list(panels)), strict=True):
        labels = [look_of(members[0]).label for members in shown[panel].values()]
        for column, one in enumerate(line):
            if column >= len(chosen[panel]):
                one.set_axis_off()
                continue
            place = chosen[panel][column]
            for height, members in enumerate(shown[panel].values()):
                row = next((row for row in members if place_of(row) == place), None)
                if row is None:
                    continue
                shares = outcome_shares(row)
                _stack(one, height, shares)
                drawn.append(row)
                told = [f"{100 * shares[what]:.1f}" if what in shares else "–" for what in OUTCOMES]
                where = "" if place is None else place_text(place)
                table.append((name.replace("\n", ", "), where, row.policy, *told))
            one.set_yticks(range(len(labels)), labels if column == 0 else [])
            one.invert_yaxis()
            one.set_xlim(0, 100)
            one.set_xlabel("share of prompt tokens, %")
            one.grid(False)
            where = "" if place is None else place_text(place)
            one.set_title(name if column == 0 and not where else where)
        if chosen[panel][0] is not None:
            line[0].set_title(f"{name}\n{place_text(chosen[panel][0])}")
    legend(
        figure,
        {
            look.label: Patch(facecolor=look.colour, hatch=look.marker, edgecolor="#444444")
            for what, look in OUTCOMES.items()
            if any(what in outcome_shares(row) for row in drawn)
        },
    )
    caption = (
        "Every prompt token is reused, was held before and lost (its state was evicted while its "
        "KV lived, its KV was evicted, or no state was ever admitted at that place), or is new. "
        "Stock LRU has no such counters; server:1 evicts the same and counts, and stands for it. "
        f"At most {MAX_PLACES} capacities a trace and {MAX_LINES} policies.{note} {source(drawn)}"
    )
    headings = tuple(f"{look.label}, %" for look in OUTCOMES.values())
    return Picture(
        key, title, caption, figure, ("panel", "memory", "policy", *headings), tuple(table)
    )


def outcome_shares(row: Row) -> dict[str, float]:
    """Fractions of the prompt tokens by what became of them; they add up to one."""
    shares = {"hit": row.token_hit_rate}
    if not _is_counted(row):
        return {**shares, "unknown": 1 - row.token_hit_rate}
    for reason in LOSSES:
        shares[reason] = (row.lost.get(reason) or 0) / row.input_tokens
    return {**shares, "new": max(0.0, 1 - sum(shares.values()))}


def _is_counted(row: Row) -> bool:
    return row.input_tokens > 0 and any(value is not None for value in row.lost.values())


def _stack(axes: Any, height: int, shares: dict[str, float]) -> None:
    left = 0.0
    for what, share in shares.items():
        look = OUTCOMES[what]
        axes.barh(
            height,
            100 * share,
            BAR,
            left=left,
            color=look.colour,
            hatch=look.marker,
            edgecolor="#444444",
            linewidth=0.4,
        )
        left += 100 * share
