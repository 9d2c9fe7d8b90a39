"""Figures 7 to 9: policies relative to a baseline, configuration by configuration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from statistics import fmean, median

from pictures.boxes import draw_boxes, ratio_axis
from pictures.common import (
    ENGINES,
    MAX_LINES,
    Absent,
    Picture,
    by_policy,
    grid,
    group,
    legend,
    plural,
    short,
    source,
    thinned,
    wrapped,
)
from pictures.rows import Row
from pictures.style import Look, look_of

ORACLES = ("infinite", "clairvoyant")
BOXES = (
    "A box spans the quartiles over the configurations, whiskers P5 and P95, the marker is the "
    "mean; fewer than five configurations are drawn one by one."
)
PERCENTILES = {"mean": "mean", "p50": "P50", "p95": "P95", "p99": "P99"}
COLUMNS = ("engine", "baseline", "category", "policy", "configurations", "mean", "median")

Pairs = list[tuple[Row, Row]]


def against_vllm(rows: Sequence[Row]) -> Picture | Absent:
    """Figure 7: token hit rate of SGLang+ and Marconi relative to vLLM+, a group a workload."""
    key, title = "figure-7-against-vllm", "Figure 7: token hit rate relative to vLLM+"
    pairs = pairs_with(rows, {"paper": "vllm+"})
    pairs = [pair for pair in pairs if pair[0].policy in _tuned_or_all(pairs) | {"sglang+"}]
    what = "After the paper's figure 7: token hit rate over that of vLLM+ at the same configuration"
    return _hit_rates(key, title, what, pairs, "rows of --engine paper, vllm+ among them")


def against_lru(rows: Sequence[Row]) -> Picture | Absent:
    """Figure 8: token hit rate relative to SGLang+ (paper's engine) or LRU (served cache)."""
    key, title = "figure-8-against-lru", "Figure 8: token hit rate relative to SGLang+ and LRU"
    pairs = pairs_with(rows, {"paper": "sglang+", "sglang": "lru"})
    kept = _tuned_or_all(pairs)
    pairs = [
        pair
        for pair in pairs
        if pair[0].policy not in (*ORACLES, "vllm+", "server:1")
        and (pair[0].engine == "sglang" or pair[0].policy in kept)
    ]
    what = (
        "After the paper's figure 8: token hit rate over that of LRU at the same configuration "
        "(SGLang+ in the paper's engine, stock LRU in the served cache)"
    )
    return _hit_rates(
        key, title, what, pairs, "rows of lru, or of --engine paper sglang+, and of another policy"
    )


def first_token(rows: Sequence[Row]) -> Picture | Absent:
    """Figure 9: modelled TTFT percentiles relative to vLLM+ or LRU."""
    key, title = "figure-9-ttft", "Figure 9: time to first token, modelled"
    timed = [row for row in rows if row.ttft]
    pairs = [
        pair
        for pair in pairs_with(timed, {"paper": "vllm+", "sglang": "lru"})
        if pair[0].policy not in ("infinite", "server:1")
    ]
    if not pairs:
        return Absent(
            key, title, "rows of lru (or --engine paper vllm+) and another policy, --concurrency N"
        )
    panels = group([pair[0] for pair in pairs], lambda row: (row.workload, row.engine))
    figure, axes = grid(*wrapped(len(panels), 2), width=5.2)
    table: list[tuple[str, ...]] = []
    for place, (workload, engine) in enumerate(panels):
        one = axes.flat[place]
        here = _kept([p for p in pairs if (p[0].workload, p[0].engine) == (workload, engine)])
        values: dict[str, dict[Look, list[float]]] = {}
        for name, heading in PERCENTILES.items():
            values[heading] = _ratios(here, partial(_ttft, name))
        draw_boxes(one, values, _looks(here))
        base = here[0][1]
        ratio_axis(one, f"modelled TTFT, ratio to {look_of(base).label}\n(lower is better)")
        one.set_title(f"{short(workload)} ({ENGINES[engine]})")
        table += _table(engine, base.policy, values, short(workload))
    _switch_off(axes, len(panels))
    legend(figure)
    caption = (
        "After the paper's figure 9: mean and percentiles of the time to first token over those of "
        "vLLM+ (paper's engine) or LRU (served cache) at the same configuration. The times are "
        "modelled from the cost curve and queueing, not measured on a device. "
        f"{BOXES} {_source(pairs)}"
    )
    return Picture(key, title, caption, figure, COLUMNS, tuple(table))


def pairs_with(rows: Sequence[Row], baselines: Mapping[str, str]) -> Pairs:
    """Each run with its engine's baseline at the same trace, memory and setting."""

    def configuration(row: Row) -> Hashable:
        return row.trace, row.memory_gib, row.capacity, row.setting

    base = {
        configuration(row): row for row in rows if row.policy == baselines.get(row.engine, object())
    }
    return [
        (row, base[configuration(row)])
        for row in rows
        if configuration(row) in base and row.policy != baselines[row.engine]
    ]


def _hit_rates(key: str, title: str, what: str, pairs: Pairs, needs: str) -> Picture | Absent:
    usable = [(row, base) for row, base in pairs if base.token_hit_rate > 0]
    if not usable:
        return Absent(key, title, needs)
    engines = list(dict.fromkeys(row.engine for row, _ in usable))
    figure, axes = grid(len(engines), 1, width=9.5, height=3.6)
    table: list[tuple[str, ...]] = []
    for one, engine in zip(axes.flat, engines, strict=True):
        here = _kept([pair for pair in usable if pair[0].engine == engine])
        values = {
            short(workload): _ratios(
                [pair for pair in here if pair[0].workload == workload],
                lambda row: row.token_hit_rate,
            )
            for workload in dict.fromkeys(row.workload for row, _ in here)
        }
        draw_boxes(one, values, _looks(here))
        base = here[0][1]
        ratio_axis(one, f"token hit rate, ratio to {look_of(base).label}\n(higher is better)")
        one.set_title(ENGINES[engine])
        table += _table(engine, base.policy, values)
    legend(figure)
    unusable = len(pairs) - len(usable)
    note = f" {plural(unusable, 'run')} left out: the baseline hit nothing." if unusable else ""
    caption = f"{what}. {BOXES}{note} {_source(usable)}"
    return Picture(key, title, caption, figure, COLUMNS, tuple(table))


def _tuned_or_all(pairs: Pairs) -> set[str]:
    """Marconi as the paper's engine tunes it, or every weight where no run was tuned."""
    ours = {row.policy for row, _ in pairs if row.family.startswith("marconi")}
    tuned = {row.policy for row, _ in pairs if row.is_tuned}
    return tuned or ours


def _kept(pairs: Pairs) -> Pairs:
    kept = thinned(by_policy([row for row, _ in pairs]), MAX_LINES)
    order = list(kept)
    return sorted(
        (pair for pair in pairs if pair[0].policy in kept),
        key=lambda pair: order.index(pair[0].policy),
    )


def _looks(pairs: Pairs) -> list[Look]:
    return list(dict.fromkeys(look_of(row) for row, _ in pairs))


def _ttft(name: str, row: Row) -> float | None:
    return row.ttft.get(name)


def _ratios(pairs: Pairs, measure: Callable[[Row], float | None]) -> dict[Look, list[float]]:
    found: dict[Look, list[float]] = defaultdict(list)
    for row, base in pairs:
        ours, theirs = measure(row), measure(base)
        if ours and theirs:
            found[look_of(row)].append(ours / theirs)
    return dict(found)


def _table(
    engine: str, base: str, values: Mapping[str, Mapping[Look, Sequence[float]]], prefix: str = ""
) -> list[tuple[str, ...]]:
    return [
        (
            engine,
            base,
            f"{prefix} {category}".strip(),
            look.label,
            str(len(found)),
            f"{fmean(found):.3f}",
            f"{median(found):.3f}",
        )
        for category, of_category in values.items()
        for look, found in of_category.items()
    ]


def _source(pairs: Pairs) -> str:
    return source(list({id(row): row for pair in pairs for row in pair}.values()))


def _switch_off(axes: Sequence[Sequence[object]], used: int) -> None:
    for one in list(axes.flat)[used:]:  # type: ignore[attr-defined]
        one.set_axis_off()
