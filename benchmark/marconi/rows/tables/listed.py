"""Tables of published policies beside policy 3, and of its ingredients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rows.cells import cells
from rows.store import Rows
from rows.tables.common import markdown, numbers, of_part, optional

_LISTS = {"s3fifo": "S3-FIFO", "arc": "ARC", "lirs": "LIRS", "lhd": "LHD", "two_q": "2Q"}
_BOTH = {**_LISTS, "sieve": "SIEVE"}
_ENDS = {"policy_3": "policy 3", "clairvoyant": "clairvoyant"}
_TWO_POOLS = {
    **{"lru": "LRU", "cap_2": "cap:2", "seglen": "seglen", "gdsf": "GDSF"},
    **{"superseded": "superseded", **_BOTH, **_ENDS},
}
_TAILS = {f"{key}_tail": f"{title}, tail" for key, title in list(_LISTS.items())[:4]}
_ONE_MEMORY = {"lru": "LRU", "superseded": "superseded", **_BOTH, **_TAILS, **_ENDS}
_INGREDIENTS = {
    "policy_3": "policy 3",
    "policy_3_no_history": "no history",
    "policy_3_no_learning": "no learning",
    "policy_3_no_returns": "no returns",
    "policy_3_no_cost": "no FLOPs per byte",
    "policy_3_states": "states only",
    "lru": "LRU",
}


def _table(rows: Rows, table: str, columns: Mapping[str, str], contest: Sequence[str]) -> str:
    """A line a cell; with a line of means where no column is contested."""
    of_part(rows, "listed")
    lines = []
    for trace, capacity, gib in cells():
        row = rows.by_id.get(f"listed/{table}/{trace}/{capacity}")
        values = {key: optional(row, key) for key in columns}
        lines.append([f"{trace}, {gib:g} GiB", *numbers(values, contest)])
    means = rows.by_id.get(f"summary/listed-{table}")
    lines.append(["mean", *numbers({key: optional(means, key) for key in columns}, contest)])
    return markdown(["trace, memory", *columns.values()], lines)


def two_pools(rows: Rows) -> str:
    """Every published policy in two pools."""
    return _table(
        rows, "two-pools", _TWO_POOLS, [key for key in _TWO_POOLS if key != "clairvoyant"]
    )


def one_memory(rows: Rows) -> str:
    """Every published policy in one memory."""
    contest = [key for key in _ONE_MEMORY if key != "clairvoyant"]
    return _table(rows, "one-memory", _ONE_MEMORY, contest)


def ingredients_two_pools(rows: Rows) -> str:
    """Policy 3 without one ingredient, in two pools."""
    return _table(rows, "two-pools", _INGREDIENTS, ())


def ingredients_one_memory(rows: Rows) -> str:
    """Policy 3 without one ingredient, in one memory."""
    columns = {key: title for key, title in _INGREDIENTS.items() if key != "policy_3_states"}
    return _table(rows, "one-memory", columns, ())


def bounds(rows: Rows) -> str:
    """Whole traces and second halves: policy 3 beside the clairvoyant and the best split."""
    of_part(rows, "listed")
    columns = (
        ("two-pools", "lru", "LRU"),
        ("two-pools", "policy_3", "policy 3"),
        ("two-pools", "clairvoyant", "clairvoyant"),
        ("two-pools", "superseded_best_split", "`superseded`, best split"),
        ("one-memory", "policy_3", "policy 3, one memory"),
        ("one-memory", "clairvoyant", "clairvoyant, one memory"),
    )
    lines = []
    places = [(f"{trace}, {gib:g} GiB", f"{trace}/{name}") for trace, name, gib in cells()]
    for title, place in (*places, ("mean", "")):
        line = [title]
        for table, key, _ in columns:
            halves = [
                rows.by_id.get(
                    f"listed/{table}{half}/{place}" if place else f"summary/listed-{table}{half}"
                )
                for half in ("", "-second-half")
            ]
            texts = numbers({str(n): optional(half, key) for n, half in enumerate(halves)})
            line.append(" / ".join(texts))
        lines.append(line)
    return markdown(["trace, memory", *(title for _, _, title in columns)], lines)


def readings(rows: Rows) -> str:
    """What list policies save when they read prefixes as nodes, lines and tails."""
    of_part(rows, "listed")
    lines = []
    for trace, capacity in (("tau-airline", "middle"), ("sharegpt-a", "middle")):
        row = rows.by_id.get(f"listed/two-pools/{trace}/{capacity}")
        for key, title in list(_LISTS.items())[:4]:
            values = {name: optional(row, name) for name in (key, f"{key}_line", f"{key}_tail")}
            values["superseded"] = optional(row, "superseded")
            gib = row["memory_gib"] if row else 0
            lines.append([f"{trace}, {gib:g} GiB", title, *numbers(values)])
    return markdown(["trace, memory", "", "node", "line", "tail", "`superseded`"], lines, words=2)
