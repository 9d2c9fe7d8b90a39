"""Tables of what the simulator says: policies, sizes, admission, splits, models, one memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rows.cells import CELLS, SIZES, cells, size_id
from rows.figures import number_text
from rows.store import Rows
from rows.tables.common import markdown, memory, numbers, of_part, optional

#: Columns of the main table, by the policy's id.
MAIN = {
    "lru": "stock LRU",
    "policy-2": "policy 2 (the paper), best weight",
    "policy-3": "policy 3",
    "policy-3-one-memory": "policy 3, one memory",
    "clairvoyant": "clairvoyant",
    "infinite": "infinite",
}
_BOUNDS = ("clairvoyant", "infinite", "clairvoyant-one-memory")
OTHERS = {
    "lru": "stock LRU",
    "cap-2": "two states a path",
    "seglen": "segment length",
    "gdsf": "GDSF",
    "superseded": "superseded first",
    "policy-3": "policy 3",
}
_BOTH = {
    f"policy-2-weight-{weight}".replace(".", "-"): weight
    for weight in ("0", "0.25", "0.5", "1", "2")
}
_STATES = {
    f"policy-2-states-weight-{weight}".replace(".", "-"): f"states {weight}"
    for weight in ("0.25", "0.5", "1", "2")
}


def _cells_table(rows: Rows, columns: Mapping[str, str], key: str) -> str:
    """A line a cell in which every column is known; a line with gaps would compare unequal runs."""
    of_part(rows, "policies")
    lines = []
    for trace, capacity, gib in cells():
        values = {
            name: optional(rows.by_id.get(f"policies/{trace}/{capacity}/{name}"), key)
            for name in columns
        }
        contest = [name for name in columns if name not in _BOUNDS]
        if None not in values.values():
            lines.append([trace, memory(capacity, gib), *numbers(values, contest)])
    if not lines:
        raise ValueError(f"no cell has {key!r} under all of {', '.join(columns)}")
    return markdown(["trace", "memory", *columns.values()], lines, words=2)


def policies(rows: Rows) -> str:
    """FLOPs saved in the fifteen cells by what a user chooses between, and the bounds."""
    return _cells_table(rows, MAIN, "flops_saved")


def policies_hits(rows: Rows) -> str:
    """Token hit rates of the same."""
    return _cells_table(rows, MAIN, "token_hit_rate")


def policies_others(rows: Rows) -> str:
    """FLOPs saved by stock's other choices and simple rules."""
    return _cells_table(rows, OTHERS, "flops_saved")


def policies_weights(rows: Rows) -> str:
    """FLOPs saved by policy 2 at each weight, over both pools and over states alone."""
    return _cells_table(rows, {"lru": "stock LRU", **_BOTH, **_STATES}, "flops_saved")


def policies_summary(rows: Rows) -> str:
    """Policies over all fifteen cells."""
    names = {
        "lru": "stock LRU",
        "policy-2-weight-0-5": "policy 2 (the paper), weight 0.5",
        "policy-2": "policy 2, the best weight of each cell",
        "policy-2-states-weight-0-5": "policy 2 on states alone, weight 0.5",
        "superseded": "superseded states first",
        "policy-3": "policy 3",
        "policy-3-one-memory": "policy 3, one memory",
        "clairvoyant": "clairvoyant",
        "infinite": "infinite cache",
    }
    found = {name: row for name in names if (row := rows.by_id.get(f"summary/{name}"))}
    shares = {"mean": "FLOPs saved, %"}
    if all("hit_mean" in row for row in found.values()):
        shares["hit_mean"] = "token hit rate, %"
    lines = []
    for name, row in found.items():
        gain = ["", "", ""]
        if name != "lru":
            gain = [
                number_text(row["gain_mean"], "+.1f"),
                " to ".join(number_text(row[f"gain_{end}"], "+.1f") for end in ("least", "most")),
                f"{row['cells_ahead']} of {row['cells']}",
            ]
        means = {key: optional(row, key) for key in shares}
        lines.append([names[name], *numbers(means), *gain])
    if not lines:
        raise ValueError("no policy has rows in all fifteen cells")
    heading = ["mean of 15 cells", *shares.values()]
    return markdown([*heading, "against LRU, points", "from, to", "cells with more"], lines)


def policies_lost(rows: Rows) -> str:
    """Why tokens seen before were prefilled again, in the middle size of each trace."""
    lines = []
    reasons = ("lost_state_evicted", "lost_kv_evicted", "lost_never_admitted")
    for trace, sizes in CELLS.items():
        for name in ("lru", "policy-2", "policy-3"):
            row = rows.by_id.get(f"policies/{trace}/middle/{name}")
            values = {key: optional(row, key) for key in ("token_hit_rate", *reasons)}
            if values[reasons[0]] is not None:
                lines.append([trace, f"{sizes['middle']:g} GiB", MAIN[name], *numbers(values)])
    if not lines:
        raise ValueError("no row of part 'policies' says where tokens were lost")
    heading = ["trace", "memory", "policy", "hit, %", "lost: state evicted"]
    return markdown([*heading, "KV evicted", "never admitted"], lines, words=3)


def policies_spread(rows: Rows) -> str:
    """Whom hits went to, in the cells in which memory is short."""
    columns = {
        "worst_window": "worst 500 requests: FLOPs saved, %",
        "never_hit": "sessions that never hit, %",
        "miss_after_miss": "misses after a miss, %",
        "uncached_p50": "uncached tokens, P50",
        "uncached_p95": "P95",
    }
    lines = []
    for trace, size, gib in cells():
        for name in ("lru", "policy-3", "policy-3-one-memory") if size != "ample" else ():
            row = rows.by_id.get(f"policies/{trace}/{size}/{name}", {})
            if "spread_uncached_p50" in row:
                shares = {key: optional(row, f"spread_{key}") for key in list(columns)[:3]}
                tokens = [f"{row[f'spread_{key}']:,}" for key in list(columns)[3:]]
                cell = f"{size}, {gib:g} GiB"
                lines.append([trace, cell, MAIN[name], *numbers(shares), *tokens])
    if not lines:
        raise ValueError("no row of part 'policies' says whom hits went to")
    return markdown(["trace", "memory", "policy", *columns.values()], lines, words=3)


_CURVES = {
    "lru": "stock LRU",
    "policy_2": "policy 2, best weight",
    "weight": "its weight",
    "policy_3": "policy 3",
    "policy_3_one_memory": "policy 3, one memory",
    "clairvoyant": "clairvoyant",
}


def curve_points(rows: Rows, trace: str) -> dict[float, dict[str, float]]:
    """FLOPs saved at every size of a trace, by the keys of the curves; sizes ascend."""
    points: dict[float, dict[str, float]] = {}
    for gib in SIZES[trace]:
        row = rows.by_id.get(f"by-memory/{trace}/{size_id(gib)}")
        if row is not None:
            points[gib] = {key: row[key]["flops_saved"] for key in _CURVES if key != "weight"}
            points[gib]["weight"] = row["policy_2"]["weight"]
    return points


def by_memory(rows: Rows) -> str:
    """The numbers of the first picture."""
    lines = []
    for trace in CELLS:
        for gib, point in curve_points(rows, trace).items():
            weight = f"{point['weight']:g}"
            values = {key: point[key] for key in _CURVES if key != "weight"}
            contest = [key for key in values if key not in _BOUNDS]
            printed = dict(zip(values, numbers(values, contest), strict=True))
            lines.append([trace, f"{gib:g} GiB", *(printed.get(key, weight) for key in _CURVES)])
    if not lines:
        raise ValueError("there are no rows of part 'by-memory'")
    return markdown(["trace", "memory", *_CURVES.values()], lines, words=2)


def admission(rows: Rows) -> str:
    """Token hit rate and FLOPs saved under both admissions."""
    columns = {
        "lru": "LRU",
        "lru_judicious": "LRU, judicious",
        "state_only": "policy 2 on states, weight 0.5",
        "state_only_judicious": "policy 2 on states, judicious",
    }
    lines = []
    for row in of_part(rows, "admission"):
        cells_ = [
            f"{row[key]['token_hit_rate']:.1f} / {row[key]['flops_saved']:.1f}" for key in columns
        ]
        lines.append([f"{row['trace']}, {row['memory_gib']:g} GiB", *cells_])
    return markdown(["trace, memory", *columns.values()], lines)


def splits(rows: Rows) -> str:
    """What each split of one memory saves, and no split."""
    names = {
        "lru": "stock LRU",
        "lru-2-states-a-path": "stock LRU, `--mamba-max-states-per-path 2`",
        "lru-judicious": "policy 1 (LRU), judicious admission",
        "policy-3": "policy 3",
        "policy-3-judicious": "policy 3, judicious admission",
    }
    columns = {
        **{f"ratio_{ratio}".replace(".", "_"): ratio for ratio in ("0.2", "0.3", "0.5")},
        **{"ratio_0_9": "0.9 (default)", "ratio_2": "2", "ratio_4": "4"},
        "one_memory": "one memory",
    }
    of_part(rows, "splits")
    lines = []
    for name, title in names.items():
        row = rows.by_id.get(f"splits/{name}")
        lines.append([title, *numbers({key: optional(row, key) for key in columns})])
    return markdown(["FLOPs saved, %, by ratio", *columns.values()], lines)


def models(rows: Rows) -> str:
    """LRU and policy 3 under other models' costs."""
    found = of_part(rows, "models")
    titles = {"nemotron-h-8b": "Nemotron-H-8B", "marconi-7b": "the paper's 7B"}
    traces: dict[str, float] = {row["trace"]: row["memory_gib"] for row in found}
    order = [trace for trace in ("tau-airline", "claude-code-a", "mini-swe-agent-a", "sharegpt-a")]
    lines = []
    for short, title in titles.items():
        for words, keys in (
            ("two pools", ("lru", "policy_3")),
            ("one memory", ("lru_one_memory", "policy_3_one_memory")),
        ):
            pairs = [rows.by_id.get(f"models/{short}/{trace}") for trace in order]
            lines.append([f"{title}, {words}", *(_pair(pair, keys) for pair in pairs)])
    heading = [f"{trace}, {traces[trace]:g} GiB" for trace in order if trace in traces]
    return markdown(["LRU / policy 3", *heading], lines)


def _pair(row: Mapping[str, float] | None, keys: Sequence[str]) -> str:
    return "" if row is None else " / ".join(f"{row[key]:.1f}" for key in keys)


def unified(rows: Rows) -> str:
    """What goes through SGLang's own unified pools saves."""
    titles = {"lru": "SGLang's LRU", "policy-2": "policy 2, weight 0.5", "policy-3": "policy 3"}
    of_part(rows, "unified")
    lines = []
    for name, title in titles.items():
        row = rows.by_id.get(f"unified/{name}")
        keys = ("flops_saved", "token_hit_rate")
        lines.append([title, *numbers({key: optional(row, key) for key in keys})])
    return markdown(["", "FLOPs saved, %", "token hit rate, %"], lines)


def staircase(rows: Rows) -> str:
    """Candidates that a decision of policy 2 looks at."""
    of_part(rows, "staircase")
    lines = []
    for trace, capacity, gib in cells():
        row = rows.by_id.get(f"staircase/{trace}/{capacity}")
        if row is not None:
            counts = [f"{row['decisions']:,}", f"{row['candidates']:,.0f}", f"{row['k_mean']:.1f}"]
            ends = [f"{row['k_p99']:.0f}", f"{row['k_most']}"]
            lines.append([trace, memory(capacity, gib), *counts, *ends])
    heading = ["trace", "memory", "decisions", "candidates, mean", "k, mean", "k, P99", "k, most"]
    return markdown(heading, lines, words=2)


def fork(rows: Rows) -> str:
    """The paper's policy on SGLang 0.5.4 and on today's release."""
    of_part(rows, "fork")
    then = {
        "lru": "0.5.4: LRU",
        "policy_2_weight_0_5": "policy 2, 0.5",
        "policy_2_weight_1": "1",
        "policy_2_states_weight_0_5": "states, 0.5",
    }
    now = {
        "lru": "0.5.23: LRU",
        "policy-2-weight-0-5": "policy 2, 0.5",
        "policy-2-weight-1": "1",
        "policy-2-states-weight-0-5": "states, 0.5",
    }
    lines = []
    for trace, capacity, gib in cells():
        old = rows.by_id.get(f"fork/{trace}/{capacity}")
        before = {key: optional(old, key) for key in then}
        at = f"policies/{trace}/{capacity}"
        today = {key: optional(rows.by_id.get(f"{at}/{key}"), "flops_saved") for key in now}
        lines.append(
            [f"{trace}, {memory(capacity, gib)}", *numbers(before, then), *numbers(today, now)]
        )
    return markdown(["trace, memory", *then.values(), *now.values()], lines)
