"""Figure 10: which prompt lengths a policy serves, and at whose expense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pictures.common import (
    Absent,
    Picture,
    by_policy,
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
    thinned,
    without_twins,
)
from pictures.rows import Row
from pictures.style import look_of

MAX_POLICIES = 8


def by_length(rows: Sequence[Row]) -> Picture | Absent:
    """Hit rate by prompt length at one capacity a trace, and the difference to LRU below it."""
    key, title = "figure-10-by-length", "Figure 10: hit rate by prompt length"
    panels, note = first_panels(group((row for row in rows if row.by_length), panel_of))
    if not panels:
        return Absent(key, title, "rows with by_length")
    figure, axes = grid(len(panels), 2)
    table: list[tuple[str, ...]] = []
    drawn: list[Row] = []
    for pair, panel, name in zip(axes, panels, panel_titles(list(panels)), strict=True):
        place = _middle(panels[panel])
        members = [
            row for row in panels[panel] if place_of(row) == place or row.family == "infinite"
        ]
        policies = thinned(by_policy(without_twins(members)), MAX_POLICIES)
        chosen = [of_policy[0] for of_policy in policies.values()]
        where = "" if place is None else f", {place_text(place)}"
        _draw(pair[0], pair[1], chosen, f"{name}{where}")
        drawn += chosen
        table += [
            (
                f"{name}{where}".replace("\n", ", "),
                row.policy,
                _edge(one.max_input_tokens),
                f"{one.input_tokens:,}",
                percent(one.hit_tokens / one.input_tokens),
            )
            for row in chosen
            for one in row.by_length
            if one.input_tokens
        ]
    legend(figure)
    caption = (
        "After the paper's figure 10: token hit rate of the prompts of each length range, beside "
        "it the difference to LRU (SGLang+ in the paper's engine) in points. The bars are the "
        "share of all prompt tokens in that range. At the middle one of the capacities "
        f"measured.{note} {source(drawn)}"
    )
    columns = ("panel", "policy", "prompt tokens, at most", "tokens in range", "token hit rate, %")
    return Picture(key, title, caption, figure, columns, tuple(table))


def _middle(rows: Sequence[Row]) -> Any:
    named = {row.capacity for row in rows}
    if "middle" in named:
        return "middle"
    found = places((row for row in rows if row.family != "infinite"), 1)
    return found[0] if found else None


def _draw(rates: Any, gains: Any, rows: Sequence[Row], title: str) -> None:
    base = next((row for row in rows if row.policy in ("lru", "sglang+")), None)
    edges = [one.max_input_tokens for one in rows[0].by_length]
    total = sum(one.input_tokens for one in rows[0].by_length) or 1
    shares = [100 * one.input_tokens / total for one in rows[0].by_length]
    rates.bar(range(len(edges)), shares, 0.9, color="#e9ecef", label="share of prompt tokens")
    of_base = {} if base is None else _rates(base)
    for row in rows:
        found = _rates(row)
        line = look_of(row).as_line()
        places_ = [place for place, edge in enumerate(edges) if edge in found]
        rates.plot(places_, [100 * found[edges[place]] for place in places_], **line)
        if base is not None and row is not base:
            both = [place for place in places_ if edges[place] in of_base]
            gaps = [100 * (found[edges[place]] - of_base[edges[place]]) for place in both]
            gains.plot(both, gaps, **line)
    for one in (rates, gains):
        labels = [_edge(edge) for edge in edges]
        one.set_xticks(range(len(edges)), labels, rotation=40, ha="right", fontsize=8)
        one.set_xlabel("prompt length, tokens (upper end of range)")
    rates.set_ylabel("token hit rate, %")
    rates.set_title(title)
    if base is None:
        gains.set_axis_off()
        return
    gains.axhline(0, color="#6b7585", linewidth=1.2)
    gains.set_ylabel(f"difference to {look_of(base).label}, points")


def _rates(row: Row) -> dict[float, float]:
    return {
        one.max_input_tokens: one.hit_tokens / one.input_tokens
        for one in row.by_length
        if one.input_tokens
    }


def _edge(tokens: float) -> str:
    return "longer" if tokens == float("inf") else f"{tokens:,.0f}"
