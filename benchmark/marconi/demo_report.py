"""The comparison in words and numbers: tables, and sentences that say who wins and who loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demo_measures import Difference, Measures
from live.tables import markdown_table

LRU, WITNESS, MARCONI = "lru", "lru-counted", "marconi"
TITLES = {LRU: "LRU (stock)", WITNESS: "LRU (policy 1)", MARCONI: "Marconi"}
KINDS = {
    "leaf_with_state": "leaf: KV and state",
    "leaf_kv_only": "leaf: KV only",
    "state_only": "state only, KV kept",
}
POOLS = {"kv": "KV", "state": "states"}
# Below this many points two hit rates print the same.
EQUAL_POINTS = 0.05


@dataclass(frozen=True)
class Comparison:
    """All that was measured on one workload.

    ``measures`` by policy; ``ttft_difference`` is Marconi's less stock LRU's, in milliseconds;
    ``repeats`` says how many times the workload ran.
    """

    title: str
    measures: Mapping[str, Measures]
    ttft_difference: Difference
    repeats: int = 1


def table(comparison: Comparison) -> str:
    """A Markdown table, aligned so that it reads well as plain text too."""
    names = [name for name in TITLES if name in comparison.measures]
    header = [comparison.title, *(TITLES[name] for name in names), "Marconi against LRU"]
    rows = [header, *_rows(comparison, names)]
    return markdown_table(rows)


def eviction_kinds(measures: Mapping[str, Measures]) -> list[str]:
    """Every "pool:kind" of which a server evicted any, in a fixed order."""
    return sorted({kind for one in measures.values() for kind in one.evictions or ()})


def kind_title(kind: str) -> str:
    """The words for a "pool:kind"."""
    pool, _, what = kind.partition(":")
    return f"{KINDS.get(what, what)} ({POOLS.get(pool, pool)} short)"


def verdict(comparison: Comparison) -> str:
    """What the numbers say, wins and losses alike, in two or three sentences."""
    lru, marconi = comparison.measures[LRU], comparison.measures[MARCONI]
    points = 100 * (marconi.token_hit_rate - lru.token_hit_rate)
    rates = f"{100 * marconi.token_hit_rate:.1f} % against {100 * lru.token_hit_rate:.1f} %"
    if abs(points) < EQUAL_POINTS:
        hits = f"Marconi and LRU hit the same share of prompt tokens ({rates})"
    else:
        word = "WINS" if points > 0 else "LOSES"
        hits = f"Marconi {word} on token hit rate, {rates} ({points:+.1f} points)"
    flops = 100 * (marconi.flops_saved_fraction - lru.flops_saved_fraction)
    return (
        f"{comparison.title}: {hits}; prefill FLOPs saved {flops:+.1f} points. {_time(comparison)}"
    )


def witness_note(comparison: Comparison) -> str:
    """Whether policy 1, which counts its victims, hit what stock LRU hit."""
    lru = comparison.measures[LRU]
    counted = comparison.measures.get(WITNESS)
    if counted is None:
        return ""
    if counted.token_hit_rate == lru.token_hit_rate:
        return "Policy 1 hit exactly what stock LRU hit, so that its evictions stand for LRU's."
    gap = 100 * (counted.token_hit_rate - lru.token_hit_rate)
    return (
        f"Policy 1's hit rate differs from stock LRU's by {gap:+.2f} points: requests overlapped, "
        "and each server interleaved them in its own way."
    )


def _time(comparison: Comparison) -> str:
    difference = comparison.ttft_difference
    bounds = difference.bounds
    if difference.low < difference.high:
        bounds += f": {difference.low:+.1f} to {difference.high:+.1f} ms"
    if difference.clear:
        word = "WINS" if difference.mean < 0 else "LOSES"
        return f"Marconi {word} on mean TTFT, by {abs(difference.mean):.1f} ms ({bounds})."
    return f"Mean TTFT shows no clear difference ({difference.mean:+.1f} ms; {bounds})."


def _rows(comparison: Comparison, names: Sequence[str]) -> list[list[str]]:
    measures = comparison.measures
    lru, marconi = measures[LRU], measures[MARCONI]
    rows = []
    for label, attribute in (
        ("token hit rate, %", "token_hit_rate"),
        ("prefill FLOPs saved, %", "flops_saved_fraction"),
    ):
        values = [100 * getattr(measures[name], attribute) for name in names]
        points = 100 * (getattr(marconi, attribute) - getattr(lru, attribute))
        rows.append([label, *(f"{value:.1f}" for value in values), f"{points:+.1f} points"])
    values = [measures[name].flops_saved / 1e9 for name in names]
    ratio = _ratio(marconi.flops_saved, lru.flops_saved)
    rows.append(["prefill GFLOPs saved", *(f"{value:.1f}" for value in values), ratio])
    for label, attribute in (
        ("TTFT mean, ms", "ttft_mean"),
        ("TTFT P50, ms", "ttft_p50"),
        ("TTFT P95, ms", "ttft_p95"),
        ("TTFT P99, ms", "ttft_p99"),
        ("input throughput, tokens/s", "input_throughput"),
        ("output throughput, tokens/s", "output_throughput"),
    ):
        digits = 1 if "TTFT" in label else 0
        cells = [f"{getattr(measures[name], attribute):.{digits}f}" for name in names]
        ratio = _ratio(getattr(marconi, attribute), getattr(lru, attribute))
        rows.append([label, *cells, ratio])
    return rows + _eviction_rows(measures, names)


def _eviction_rows(measures: Mapping[str, Measures], names: Sequence[str]) -> list[list[str]]:
    reference = measures[WITNESS] if WITNESS in measures else measures[LRU]
    rows = []
    for kind in eviction_kinds(measures):
        row = [f"evicted {kind_title(kind)}"]
        for name in names:
            counts = measures[name].evictions
            row.append("not counted" if counts is None else str(counts.get(kind, 0)))
        ours, theirs = measures[MARCONI].evictions, reference.evictions
        both = ours is not None and theirs is not None
        row.append(f"{(ours or {}).get(kind, 0) - (theirs or {}).get(kind, 0):+d}" if both else "")
        rows.append(row)
    return rows


def _ratio(ours: float, theirs: float) -> str:
    return f"x {ours / theirs:.2f}" if theirs else "-"
