"""What all pictures share: grouping rows into panels, laying panels out, and one legend outside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, TypeVar

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from pictures.rows import CAPACITIES, DEFAULT_ALPHA, Row
from pictures.style import Look, look_of, order_of

MAX_LINES = 12
MAX_PANEL_ROWS = 10
TITLE_WIDTH = 50

ENGINES = {"sglang": "served cache", "shadow": "block hashes", "paper": "paper's engine"}
MEMORIES = {"static": "a pool each", "elastic": "one memory"}

#: What :attr:`pictures.rows.Row.setting` holds, in its order, the labels left out.
_SETTING = (
    *("engine", "base", "model", "memory", "memory ratio", "admission"),
    *("measured from", "concurrency"),
)
#: Labels that have figures of their own.
SWEPT_LABELS = frozenset({"layer_composition", "state_dim", "arrival_rate", "think_time"})

K = TypeVar("K", bound=Hashable)
Panel = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Picture:
    """A finished figure: ``key`` names its files, ``table`` holds the numbers that are drawn."""

    key: str
    title: str
    caption: str
    figure: Any
    columns: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Absent:
    """A figure that the rows do not give, and which rows would."""

    key: str
    title: str
    needs: str


def group(rows: Iterable[Row], key: Callable[[Row], K]) -> dict[K, list[Row]]:
    """Rows by key, keys in the order of their first row."""
    groups: dict[K, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def panel_of(row: Row) -> Panel:
    """Runs of one panel differ in policy and memory alone."""
    return row.trace, row.setting


def panel_titles(panels: Sequence[Panel]) -> list[str]:
    """The trace of each panel, and whatever else tells it from the other panels."""
    titles = []
    for trace, setting in panels:
        engine = setting[0]
        alike = [other for _, other in panels if other[0] == engine]
        parts = [
            _setting_text(name, setting[place])
            for place, name in enumerate(_SETTING)
            if setting[place] not in (None, "") or name == "concurrency"
            if len({other[place] for other in (alike if place else [one for _, one in panels])}) > 1
        ]
        parts += [f"{name} {value}" for name, value in setting[-1] if name != "shape"]
        titles.append("\n".join([short(trace), *wrap(", ".join(parts), TITLE_WIDTH)]))
    return titles


def _setting_text(name: str, value: Any) -> str:
    if name == "engine":
        return ENGINES[value]
    if name == "memory":
        return MEMORIES[value]
    if name == "measured from":
        return f"measured from {100 * value:g} % on"
    if name == "base":
        return f"SGLang {value}"
    if name == "concurrency":
        return "one request at a time" if value is None else f"concurrency {value}"
    if name == "model":
        return short(str(value).rpartition("/")[2])
    return f"{name} {value}"


def short(name: str) -> str:
    """A file's name without what says how it is packed."""
    for ending in (".xz", ".zst", ".gz", ".jsonl", ".json"):
        name = name.removesuffix(ending)
    return name


def first_panels(panels: Mapping[Panel, list[Row]]) -> tuple[dict[Panel, list[Row]], str]:
    """The panels that a picture has room for, and what to say of the others.

    Runs of a sweep that has a figure of its own are used only where there is nothing else.
    """
    unswept = {panel: rows for panel, rows in panels.items() if not _is_swept(panel)}
    ordered = list((unswept or panels).items())
    left_out = len(ordered) - MAX_PANEL_ROWS
    note = f" {plural(left_out, 'further panel')} would not fit." if left_out > 0 else ""
    return dict(ordered[:MAX_PANEL_ROWS]), note


def _is_swept(panel: Panel) -> bool:
    return any(name in SWEPT_LABELS for name, _ in panel[1][-1])


def without_twins(rows: Sequence[Row], keep: str = "lru") -> list[Row]:
    """Rows less those of policy 1 or of stock LRU, which evict the same, where both are there."""
    twins = {"lru", "server:1"}
    if not twins <= {row.policy for row in rows}:
        return list(rows)
    return [row for row in rows if row.policy not in twins - {keep}]


def by_policy(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by policy, in the order of the legend."""
    groups = group(sorted(rows, key=order_of), lambda row: row.policy)
    return groups


def thinned(policies: Mapping[str, list[Row]], most: int = MAX_LINES) -> dict[str, list[Row]]:
    """At most so many policies: the family with most weights loses those farthest from 0.5."""
    kept = dict(policies)
    while len(kept) > most:
        families = group((rows[0] for rows in kept.values()), lambda row: row.family)
        largest = max(families.values(), key=len)
        if len(largest) < 2:
            last = list(kept)[most:]
            return {name: rows for name, rows in kept.items() if name not in last}
        del kept[max(largest, key=_distance).policy]
    return kept


def _distance(row: Row) -> float:
    return 0.0 if row.alpha is None else abs(row.alpha - DEFAULT_ALPHA)


def place_of(row: Row) -> Hashable:
    """The capacity of a run within its panel: its name if it has one, or its GiB."""
    return row.capacity or row.memory_gib


def places(rows: Iterable[Row], most: int) -> list[Any]:
    """At most so many of the capacities, spread from the smallest to the largest."""
    found = {place_of(row) for row in rows} - {None}
    named = [name for name in CAPACITIES if name in found]
    if named:
        return named[:most]
    sizes = sorted(size for size in found if isinstance(size, float))
    if len(sizes) <= most:
        return sizes
    if most == 1:
        return [sizes[len(sizes) // 2]]
    return [sizes[round(k * (len(sizes) - 1) / (most - 1))] for k in range(most)]


def place_text(place: Any) -> str:
    """A capacity in words."""
    return place if isinstance(place, str) else f"{place:.3g} GiB"


def grid(rows: int, columns: int, width: float = 4.6, height: float = 3.1) -> tuple[Any, Any]:
    """A figure and its axes by row and column; constrained layout leaves room for a legend."""
    figure = Figure(figsize=(width * columns + 2.2, height * rows + 0.3), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def wrapped(count: int, columns: int = 3) -> tuple[int, int]:
    """Rows and columns that hold so many panels."""
    return -(-count // columns), min(count, columns)


def legend(figure: Any, looks: Mapping[str, Any] | None = None) -> None:
    """One legend for all panels, to their right; ``looks`` are handles by label."""
    found: dict[str, Any] = dict(looks or {})
    if not found:
        for axes in figure.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="outside right upper", fontsize=9)


def sizes_axis(axes: Any, sizes: Iterable[float]) -> None:
    """A logarithmic axis of GiB with a tick at each size that was measured."""
    ticks = sorted(set(sizes))
    while len(ticks) > 7:
        ticks = ticks[::2]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:.3g}" for tick in ticks])
    axes.set_xlabel("cache memory, GiB (log scale)")


def curve(axes: Any, look: Look, points: Mapping[float, float]) -> None:
    """One policy's line, left to right."""
    ordered = sorted(points.items())
    axes.plot([x for x, _ in ordered], [y for _, y in ordered], **look.as_line())


def bound(axes: Any, row: Row, value: float) -> None:
    """A value that does not depend on the axis, as a horizontal line."""
    style = look_of(row).as_line()
    axes.axhline(
        value,
        label=style["label"],
        color=style["color"],
        linestyle=style["linestyle"] if row.family == "infinite" else (0, (3, 1.5)),
        linewidth=1.5,
    )


def percent(value: float) -> str:
    """A fraction as a percentage, for tables."""
    return f"{100 * value:.1f}"


def plural(count: int, what: str) -> str:
    """A count and its noun."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def source(rows: Sequence[Row]) -> str:
    """The end of a caption: which rows were drawn."""
    engines = [
        name for engine, name in ENGINES.items() if any(row.engine == engine for row in rows)
    ]
    requests = sorted({row.requests for row in rows})
    spread = f"{requests[0]:,}" if len(requests) == 1 else f"{requests[0]:,} to {requests[-1]:,}"
    return (
        f"Drawn from {plural(len(rows), 'row')} of the {' and the '.join(engines)}, "
        f"{spread} requests a run."
    )
