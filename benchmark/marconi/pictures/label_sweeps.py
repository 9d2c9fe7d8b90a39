"""Figures 12 and 13: token hit rate over something that the runs' labels tell."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from pictures.common import (
    ENGINES,
    Absent,
    Picture,
    by_policy,
    grid,
    group,
    legend,
    percent,
    short,
    source,
    thinned,
    without_twins,
)
from pictures.rows import Row
from pictures.style import look_of

MAX_POLICIES = 8
#: Label: its axis, and whether each value has a model of its own.
SWEPT = {
    "layer_composition": ("layers, state space : attention", True),
    "state_dim": ("state dimension N", True),
    "arrival_rate": ("sessions a second", False),
    "think_time": ("mean response time, s", False),
}


def models(rows: Sequence[Row]) -> Picture | Absent:
    """Figure 12: layer composition and state size."""
    return _swept(
        rows,
        "figure-12-models",
        "Figure 12: layer composition and state size",
        ("layer_composition", "state_dim"),
        "After the paper's figure 12: token hit rate over the ratio of state space to attention "
        "layers, and over the size of the state, at equal memory.",
    )


def arrivals(rows: Sequence[Row]) -> Picture | Absent:
    """Figure 13: arrival rate and think time."""
    return _swept(
        rows,
        "figure-13-arrivals",
        "Figure 13: arrival rate and think time",
        ("arrival_rate", "think_time"),
        "After the paper's figure 13: token hit rate over how often sessions start, and over the "
        "mean time between a session's requests, at equal memory.",
    )


def _swept(
    rows: Sequence[Row], key: str, title: str, labels: Sequence[str], what: str
) -> Picture | Absent:
    panels = [(label, members) for label in labels for members in _sweeps(rows, label)]
    if not panels:
        wanted = " or ".join(f"--label {label}=…" for label in labels)
        return Absent(key, title, f"rows with {wanted}, two values or more at equal memory")
    lines = list(dict.fromkeys((_workload(members), members[0].engine) for _, members in panels))
    columns = [label for label in labels if any(label == one for one, _ in panels)]
    figure, axes = grid(len(lines), len(columns))
    table: list[tuple[str, ...]] = []
    free = {(line, column) for line in range(len(lines)) for column in range(len(columns))}
    for label, members in panels:
        line = lines.index((_workload(members), members[0].engine))
        column = columns.index(label)
        if (line, column) not in free:
            continue
        free.discard((line, column))
        one = axes[line][column]
        values = sorted({row.label(label) for row in members}, key=_size)
        name = f"{_workload(members)} ({ENGINES[members[0].engine]})"
        for of_policy in thinned(by_policy(without_twins(members)), MAX_POLICIES).values():
            points = {values.index(row.label(label)): row.token_hit_rate for row in of_policy}
            found = sorted(points.items())
            one.plot(
                [place for place, _ in found],
                [100 * rate for _, rate in found],
                **look_of(of_policy[0]).as_line(),
            )
            table += [
                (name, label, str(values[place]), of_policy[0].policy, percent(rate))
                for place, rate in found
            ]
        one.set_xticks(range(len(values)), [str(value) for value in values])
        one.set_xlabel(SWEPT[label][0])
        one.set_ylabel("token hit rate, %")
        memory = members[0].memory_gib
        one.set_title(name if memory is None else f"{name}, {memory:.3g} GiB")
    for line, column in free:
        axes[line][column].set_axis_off()
    legend(figure)
    drawn = [row for _, members in panels for row in members]
    columns_ = ("workload", "swept", "value", "policy", "token hit rate, %")
    return Picture(key, title, f"{what} {source(drawn)}", figure, columns_, tuple(table))


def _sweeps(rows: Sequence[Row], label: str) -> list[list[Row]]:
    """Groups of rows that differ in policy and this label alone."""
    labelled = [row for row in rows if row.label(label) is not None]
    groups = group(labelled, lambda row: _others(row, label)).values()
    return [members for members in groups if len({row.label(label) for row in members}) >= 2]


def _others(row: Row, label: str) -> Hashable:
    """What is equal in a sweep over one label; a swept model is no other model."""
    engine, base, model, *rest, labels = row.setting
    others = tuple(item for item in labels if item[0] != label)
    model = "" if SWEPT[label][1] else model
    return row.workload, row.memory_gib, engine, base, model, *rest, others


def _workload(rows: Sequence[Row]) -> str:
    return short(rows[0].workload)


def _size(value: object) -> tuple[float, str]:
    text = str(value)
    over, _, under = text.partition(":")
    try:
        return float(over) / (float(under) if under else 1.0), text
    except (ValueError, ZeroDivisionError):
        return float("inf"), text
