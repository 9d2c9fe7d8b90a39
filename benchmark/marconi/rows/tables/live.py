"""Tables of what takes time: tree operations, decisions, a busy server, live slices, the demo."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rows.figures import number_text
from rows.store import Row, Rows
from rows.tables.common import markdown, of_part

_SERVERS = {
    "lru": "stock LRU",
    "policy-2": "policy 2 (0.5)",
    "policy-3": "policy 3",
    "policy-3-one-memory": "policy 3, one memory",
    "policy-3-advised-split": "policy 3, advised split",
}


def _times(row: Row, base: Row, key: str, digits: int) -> str:
    text = f"{row[key]:.{digits}f}"
    return text if row is base else f"{text} (x {row[key] / base[key]:.2f})"


def _points(row: Row, base: Row, key: str) -> str:
    return (
        f"{row[key]:.1f}"
        if row is base
        else f"{row[key]:.1f} ({number_text(row[key] - base[key], '+.1f')})"
    )


def _span(row: Row) -> str:
    if "token_hit_rate_least" not in row:
        return ""
    return f"{row['token_hit_rate_least']:.1f} to {row['token_hit_rate_most']:.1f}"


def live(part: str) -> Callable[[Rows], str]:
    """Live servers side by side on one slice."""

    def table(rows: Rows) -> str:
        of_part(rows, part)
        names = [name for name in _SERVERS if f"{part}/{name}" in rows.by_id]
        found = [rows.by_id[f"{part}/{name}"] for name in names]
        base = found[0]
        titles = [_SERVERS[name] for name in names]
        advised = rows.by_id.get(f"{part}/policy-3-advised-split")
        if advised is not None:
            titles[-1] += f" ({advised['ratio']:g})"
        lines = [
            ["TTFT P50, ms", *(_times(row, base, "ttft_p50_ms", 1) for row in found)],
            ["TTFT P95, ms", *(_times(row, base, "ttft_p95_ms", 1) for row in found)],
            ["token hit rate, %", *(_points(row, base, "token_hit_rate") for row in found)],
            ["of the repeats", *map(_span, found)],
            ["prefill FLOPs saved, %", *(_points(row, base, "flops_saved") for row in found)],
            ["requests/s", *(_times(row, base, "requests_per_s", 2) for row in found)],
        ]
        lines = [line for line in lines if any(line[1:])]
        return markdown(["median", *titles], lines)

    return table


_CACHES = {
    "rust": "stock, Rust core",
    "python": "stock, Python core",
    "policy_1": "policy 1",
    "policy_2": "policy 2",
    "policy_3": "policy 3",
}
_OPERATIONS = (
    *("match-2048", "match-32768", "insert-2048", "insert-32768", "unlock-2048", "unlock-32768"),
    *("evict-one-state", "evict-one-inner-state", "evict-a-leaf-state", "evict-one-kv-leaf"),
)


def tree_speed(rows: Rows) -> str:
    """Microseconds a tree operation, with ratios to stock's two cores."""
    found = of_part(rows, "tree-speed")
    names = [name for name in _CACHES if any(name in row for row in found)]
    lines = []
    for nodes in sorted({row["nodes"] for row in found}):
        for operation in _OPERATIONS:
            row = rows.by_id.get(f"tree-speed/{nodes}/{operation}")
            if row is not None:
                cells = [_microseconds(row.get(name)) for name in names]
                lines.append([f"{nodes:,}", row["operation"], *cells])
    return markdown(["nodes", "µs to", *(_CACHES[name] for name in names)], lines, words=2)


def _microseconds(value: Mapping[str, float] | None) -> str:
    if value is None:
        return ""
    if "of_rust" not in value:
        return f"{value['us']:,.0f}"
    return f"{value['us']:,.0f} ({value['of_rust']:.2f} / {value['of_python']:.2f})"


def candidates_speed(rows: Rows) -> str:
    """Choosing a victim alone."""
    found = sorted(of_part(rows, "candidates-speed"), key=lambda r: (r["prefixes"], r["policy"]))
    lines = []
    for row in found:
        weight = f"{row['weight']:g}" if "weight" in row else ""
        scan = f"{row['scan_us']:,.0f}" if "scan_us" in row else ""
        k = f"{row['k']:.1f}" if "k" in row else ""
        times = [f"{row['step_us']:.1f}", f"{row['decision_us']:.1f}", f"{row['worst_ms']:.2f}"]
        name = [f"{row['prefixes']:,}", str(row["policy"])]
        lines.append([*name, weight, *times, scan, k, f"{row['bytes']:.0f}"])
    heading = ["prefixes", "policy", "weight", "µs a step", "of it the decision", "worst, ms"]
    return markdown([*heading, "scan, µs a step", "k", "bytes a prefix"], lines)


def busy_server(rows: Rows) -> str:
    """What the policies cost a busy server."""
    titles = {
        "stock": "stock, Rust core",
        "control": "control: stock again",
        "policy-1": "policy 1",
        "policy-2": "policy 2",
        "policy-3": "policy 3",
    }
    of_part(rows, "busy-server")
    lines = []
    for name, title in titles.items():
        row = rows.by_id.get(f"busy-server/{name}")
        if row is None:
            continue
        launches = [f"{row[f'launch_{n}']:.3f}" for n in (1, 2, 3) if f"launch_{n}" in row]
        rates = f"{row['rate_of_stock']:.3f} ({', '.join(launches)})"
        lines.append(
            [
                *(title, rates, f"{row['token_hit_rate']:.1f}", f"{row['ttft_mean_ms']:.0f}"),
                *(f"{row['cpu_ms']:.2f}", f"{row['forward_ms']:.2f}", f"{row['rest_ms']:.2f}"),
                *(f"{row['evicting_calls']}", f"{row['evicting_mean_ms']:.2f}"),
                *(f"{row['over_2_ms']}", f"{row['over_5_ms']}", f"{row['evicting_share']:.2f}"),
            ]
        )
    heading = ["", "requests/s, of stock's (each launch)", "token hit rate, %", "TTFT mean, ms"]
    heading += ["CPU, ms a request", "forwards, ms", "the rest, ms", "calls that evict"]
    return markdown([*heading, "mean, ms", "over 2 ms", "over 5 ms", "% of the time"], lines)


def tuning_gain(rows: Rows) -> str:
    """The tuner's time, and its gain where every row has one."""
    found = of_part(rows, "tuning-gain")
    gains = {"tuned": "FLOPs saved, tuned, %", "best_fixed": "best fixed weight, %"}
    if not all(key in row for row in found for key in gains):
        gains = {}
    lines = []
    for row in found:
        name = f"`--marconi-evict-policy {row['policy']}`"
        saved = [f"{row[key]:.1f}" for key in gains]
        lines.append([name, f"{row['choices']}", f"{row['cpu_ms_a_request']:.1f}", *saved])
    heading = ["", "weights tried", "CPU of the tuner, ms a request", *gains.values()]
    return markdown(heading, lines)


def demo(rows: Rows) -> str:
    """What the demo's servers hit and how fast they are."""
    found = of_part(rows, "demo")
    shown = {
        "token_hit_rate": "token hit rate, %",
        "flops_saved": "prefill FLOPs saved, %",
        "ttft_p50": "TTFT P50, ms",
        "ttft_p95": "TTFT P95, ms",
        "requests_per_s": "requests/s",
    }
    # A busy machine's times were not kept.
    keys = [key for key in shown if all(key in row for row in found)]
    lines = [[r["workload"], r["server"], *(f"{r[key]:.1f}" for key in keys)] for r in found]
    return markdown(["workload", "server", *(shown[key] for key in keys)], lines, words=2)
