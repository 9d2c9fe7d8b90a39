"""The comparison in words and numbers: tables, rows, and lines that say who won and who lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from live.tables import markdown_table

from demonstration.contenders import STOCK, TITLES
from demonstration.measures import Measures, rate_ratio

KINDS = {
    "leaf_with_state": "leaf: KV and state",
    "leaf_kv_only": "leaf: KV only",
    "state_only": "state only, KV kept",
}
POOLS = {"kv": "KV", "state": "states"}
REASONS = {
    "state_evicted": "the state was evicted",
    "kv_evicted": "the KV was evicted",
    "never_admitted": "no state was kept there",
}
#: Points of prefill saved under which two servers are even: what the order of requests that
#: overlap moves from run to run, and what prints the same.
OVERLAP_POINTS, EXACT_POINTS = 1.0, 0.05
#: Label, attribute, factor, digits, and whether it is a share (differs in points) or a ratio.
_FIGURES = (
    ("prefill FLOPs saved, %", "flops_saved_fraction", 100, 1, True),
    ("token hit rate, %", "token_hit_rate", 100, 1, True),
    ("TTFT P50, ms", "ttft_p50", 1, 0, False),
    ("TTFT P95, ms", "ttft_p95", 1, 0, False),
    ("TTFT P99, ms", "ttft_p99", 1, 0, False),
    ("TTFT mean, ms", "ttft_mean", 1, 0, False),
    ("input tokens/s", "input_throughput", 1, 0, False),
    ("output tokens/s", "output_throughput", 1, 0, False),
    ("CPU of the server, ms a request", "cpu_seconds_a_request", 1000, 1, False),
)


@dataclass(frozen=True)
class Comparison:
    """All that was measured on one workload: ``measures`` by server, stock's among them.

    ``exact``: hits follow from the order of the requests alone and repeat.
    """

    workload: str
    title: str
    measures: Mapping[str, Measures]
    exact: bool = False

    @property
    def margin(self) -> float:
        """Points of prefill saved that a winner must be ahead by."""
        return EXACT_POINTS if self.exact else OVERLAP_POINTS


def verdict(comparison: Comparison, is_busy: bool = False) -> str:
    """Who won by how much, who did not, in one line.

    Args:
        is_busy: other programs worked beside the servers, so that times mean little.
    """
    measures = comparison.measures
    saved = {name: 100 * one.flops_saved_fraction for name, one in measures.items()}
    ranked = sorted(saved, key=lambda name: -saved[name])
    winners = [name for name in ranked if saved[ranked[0]] - saved[name] < comparison.margin]
    rivals = [name for name in ranked if name != STOCK]
    first = next((name for name in winners if name != STOCK), rivals[0])
    share = f"{saved[winners[0]]:.1f} % of the prefill FLOPs saved"
    if winners == [STOCK]:
        head = f"{TITLES[STOCK]} WINS, {share}; closest is {TITLES[first]}"
    elif STOCK in winners:
        even = ", ".join(TITLES[name] for name in winners if name != STOCK)
        head = (
            f"a TIE, less than {comparison.margin:g} apart, of {TITLES[STOCK]} and {even}, {share}"
        )
    elif len(winners) == 1:
        head = f"{TITLES[first]} WINS, {share}, {TITLES[STOCK]} {saved[STOCK]:.1f} %"
    else:
        even = " and ".join(TITLES[name] for name in winners)
        head = f"{even} WIN alike, {share}, {TITLES[STOCK]} {saved[STOCK]:.1f} %"
    points = ", ".join(f"{TITLES[name]} {saved[name] - saved[STOCK]:+.1f}" for name in rivals)
    detail = f"{TITLES[first]}: {_against_stock(measures, first)}"
    if is_busy:
        detail += "; its times are a busy machine's"
    return f"{comparison.title}: {head}. Points against {TITLES[STOCK]}: {points}. {detail}."


def table(comparison: Comparison) -> str:
    """A Markdown table, aligned so that it reads well as plain text too."""
    names = list(comparison.measures)
    header = [comparison.title, *(TITLES[name] for name in names)]
    rows = [header]
    for label, attribute, factor, digits, is_share in _FIGURES:
        values = {n: factor * getattr(comparison.measures[n], attribute) for n in names}
        rows.append([label, *(_cell(values, n, digits, is_share) for n in names)])
        if attribute == "token_hit_rate":
            rows.append(["requests/s (median ratio)", *(_rate(comparison, n) for n in names)])
    return markdown_table(rows + _counted_rows(comparison.measures))


def eviction_kinds(measures: Mapping[str, Measures]) -> list[str]:
    """Every "pool:kind" of which a server evicted any, in a fixed order."""
    return sorted({kind for one in measures.values() for kind in one.evictions or ()})


def kind_title(kind: str) -> str:
    """The words for a "pool:kind"."""
    pool, _, what = kind.partition(":")
    return f"{KINDS.get(what, what)} ({POOLS.get(pool, pool)} short)"


def rows(comparison: Comparison, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One object a server: the figures, their ratios to stock's, and what all rows share."""
    stock = comparison.measures[STOCK]
    found = []
    for name, measures in comparison.measures.items():
        rate = rate_ratio(measures, stock)
        found.append(
            {
                **shared,
                "workload": comparison.workload,
                "server": name,
                **asdict(measures),
                "points_saved_against_stock": 100
                * (measures.flops_saved_fraction - stock.flops_saved_fraction),
                "requests_per_s_against_stock": asdict(rate),
                "ttft_p50_against_stock": measures.ttft_p50 / stock.ttft_p50,
            }
        )
    return found


def _against_stock(measures: Mapping[str, Measures], name: str) -> str:
    ours, stock = measures[name], measures[STOCK]
    points = 100 * (ours.token_hit_rate - stock.token_hit_rate)
    rate = rate_ratio(ours, stock)
    count = len(ours.run_rates)
    spread = f" ({rate.low:.2f} to {rate.high:.2f} in {count} rounds)" if count > 1 else ""
    return (
        f"hit rate {100 * ours.token_hit_rate:.1f} % against {100 * stock.token_hit_rate:.1f} % "
        f"({points:+.1f} points), requests/s x {rate.middle:.2f}{spread}, "
        f"TTFT P50 {ours.ttft_p50:,.0f} ms against {stock.ttft_p50:,.0f} "
        f"(x {ours.ttft_p50 / stock.ttft_p50:.2f}), CPU a request "
        f"x {ours.cpu_seconds_a_request / stock.cpu_seconds_a_request:.2f}"
    )


def _cell(values: Mapping[str, float], name: str, digits: int, is_share: bool) -> str:
    value, stock = values[name], values[STOCK]
    text = f"{value:.{digits}f}"
    if name == STOCK:
        return text
    if is_share:
        return f"{text} ({value - stock:+.{digits}f})"
    return f"{text} (x {value / stock:.2f})" if stock else text


def _rate(comparison: Comparison, name: str) -> str:
    measures = comparison.measures
    text = f"{measures[name].requests_per_s:.2f}"
    if name == STOCK:
        return text
    return f"{text} (x {rate_ratio(measures[name], measures[STOCK]).middle:.2f})"


def _counted_rows(measures: Mapping[str, Measures]) -> list[list[str]]:
    found = []
    reasons = sorted({reason for one in measures.values() for reason in one.lost_tokens or ()})
    for reason in reasons:
        label = f"tokens prefilled again: {REASONS.get(reason, reason)}"
        found.append([label, *(_count(one.lost_tokens, reason) for one in measures.values())])
    for kind in eviction_kinds(measures):
        label = f"evicted {kind_title(kind)}"
        found.append([label, *(_count(one.evictions, kind) for one in measures.values())])
    return found


def _count(counts: Mapping[str, int] | None, kind: str) -> str:
    return "not counted" if counts is None else str(counts.get(kind, 0))
