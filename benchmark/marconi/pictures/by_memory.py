"""Hit rate and FLOPs saved over the cache's size, and the same where memory is contended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pictures.common import (
    MAX_LINES,
    Absent,
    Panel,
    Picture,
    bound,
    by_policy,
    curve,
    first_panels,
    grid,
    group,
    legend,
    panel_of,
    panel_titles,
    percent,
    sizes_axis,
    source,
    thinned,
    without_twins,
)
from pictures.rows import Row
from pictures.style import look_of

MEASURES: tuple[tuple[str, Callable[[Row], float]], ...] = (
    ("token hit rate, %", lambda row: row.token_hit_rate),
    ("prefill FLOPs saved, %", lambda row: row.flops_saved),
)
COLUMNS = ("panel", "policy", "memory, GiB", "token hit rate, %", "prefill FLOPs saved, %")


def cache_size(rows: Sequence[Row]) -> Picture | Absent:
    """Token hit rate and FLOPs saved over memory, one line a policy, one row of panels a trace."""
    key, title = "cache-size", "Hit rate and FLOPs saved over cache size"
    panels, more = first_panels(_with_sizes(rows, 2))
    if not panels:
        return Absent(key, title, "runs of one trace at two memory sizes or more (--memory-gib)")
    figure, axes = grid(len(panels), 2)
    drawn: list[tuple[str, Row]] = []
    left_out: set[str] = set()
    for pair, (panel, name) in zip(axes, _named(panels), strict=True):
        policies = by_policy(without_twins(panels[panel]))
        kept = thinned(policies)
        left_out |= set(policies) - set(kept)
        for one, (quantity, measure) in zip(pair, MEASURES, strict=True):
            for members in kept.values():
                if members[0].family == "infinite":
                    bound(one, members[0], 100 * max(map(measure, members)))
                else:
                    points = {row.memory_gib or 0: 100 * measure(row) for row in members}
                    curve(one, look_of(members[0]), points)
            sizes = [row.memory_gib or 0 for row in panels[panel] if row.family != "infinite"]
            sizes_axis(one, sizes)
            one.set_ylabel(quantity)
        pair[0].set_title(name)
        drawn += [(name, row) for members in kept.values() for row in members]
    legend(figure)
    note = (
        f" To keep at most {MAX_LINES} lines a panel, {', '.join(sorted(left_out))} are left out."
        if left_out
        else ""
    )
    caption = (
        "What each policy reuses as the cache grows; higher is better. The dotted line is an "
        "infinite cache, an upper bound at any size; the dashed clairvoyant line evicts with "
        f"knowledge of the future and is a strong heuristic, not a proof.{note}{more} "
        f"{source([row for _, row in drawn])}"
    )
    return Picture(key, title, caption, figure, COLUMNS, _table(drawn))


def contention(rows: Sequence[Row]) -> Picture | Absent:
    """Figure 11: how the gain over LRU depends on how short memory is."""
    key, title = "figure-11-contention", "Figure 11: contention for the cache"
    panels, more = first_panels(
        {
            panel: members
            for panel, members in _with_sizes(rows, 3).items()
            if {"lru", "sglang+"} & {row.policy for row in members}
            and any(row.family.startswith("marconi") for row in members)
        }
    )
    if not panels:
        return Absent(
            key,
            title,
            "runs of one trace at three memory sizes or more, of lru and a marconi policy "
            "(or sglang+ and marconi of --engine paper)",
        )
    figure, axes = grid(len(panels), 2)
    drawn: list[tuple[str, Row]] = []
    for (rate, gain), (panel, name) in zip(axes, _named(panels), strict=True):
        policies = {
            policy: members
            for policy, members in thinned(by_policy(without_twins(panels[panel]))).items()
            if members[0].family not in ("infinite", "clairvoyant")
        }
        base = {
            row.memory_gib: row.token_hit_rate
            for row in panels[panel]
            if row.policy in ("lru", "sglang+")
        }
        for members in policies.values():
            look = look_of(members[0])
            points = {row.memory_gib or 0: 100 * row.token_hit_rate for row in members}
            curve(rate, look, points)
            if members[0].policy not in ("lru", "sglang+"):
                over = {
                    row.memory_gib or 0: 100 * (row.token_hit_rate - base[row.memory_gib])
                    for row in members
                    if row.memory_gib in base
                }
                curve(gain, look, over)
            drawn += [(name, row) for row in members]
        gain.axhline(0, color="#6b7585", linewidth=1.2)
        for one in (rate, gain):
            sizes_axis(one, [row.memory_gib or 0 for row in panels[panel]])
        rate.set_ylabel("token hit rate, %")
        gain.set_ylabel(f"gain over {'SGLang+' if panel[1][0] == 'paper' else 'LRU'}, points")
        rate.set_title(name)
    legend(figure)
    caption = (
        "After the paper's figure 11: token hit rate from a scarce to an ample cache, and what "
        "each policy gains over LRU (SGLang+ in the paper's engine) at the same size; below zero "
        f"it loses.{more} {source([row for _, row in drawn])}"
    )
    return Picture(key, title, caption, figure, COLUMNS, _table(drawn))


def _with_sizes(rows: Sequence[Row], least: int) -> dict[Panel, list[Row]]:
    panels = group((row for row in rows if row.memory_gib), panel_of)
    found = {
        panel: members
        for panel, members in panels.items()
        if len({row.memory_gib for row in members if row.family != "infinite"}) >= least
    }
    return found


def _named(panels: dict[Panel, list[Row]]) -> list[tuple[Panel, str]]:
    return list(zip(panels, panel_titles(list(panels)), strict=True))


def _table(drawn: Sequence[tuple[str, Row]]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            name.replace("\n", ", "),
            row.policy,
            f"{row.memory_gib:.4g}",
            percent(row.token_hit_rate),
            percent(row.flops_saved),
        )
        for name, row in drawn
    )
