"""Comparing runs with golden data of the published simulator, request by request.

A golden folder holds ``traces/NAME.jsonl.xz`` and ``results/NAME.LABEL.json.xz``; LABEL is the name
of a mode. Every number must be equal; scores and margins are recorded to 12 significant digits.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from paper.cost import PaperModel
from paper.engine import PaperCache, PaperConfig
from paper.modes import MODES, Fixes
from paper.records import Eviction, Lookup, RequestRecord, Summary
from paper.trace_file import TraceError, read_trace
from paper.tuner import TunerReport

Requests = Sequence[tuple[bytes, bytes]]
Json = dict[str, Any]

SUMMARY: dict[str, Callable[[Summary], object]] = {
    "n_requests": lambda s: s.requests,
    "request_hit_rate": lambda s: s.request_hit_rate,
    "token_hit_rate": lambda s: s.token_hit_rate,
    "total_input_tokens": lambda s: s.input_tokens,
    "total_matched_tokens": lambda s: s.matched_tokens,
    "flops_saved_mamba": lambda s: s.flops_saved_ssm,
    "flops_saved_attn": lambda s: s.flops_saved_attn,
    "flops_saved_mlp": lambda s: s.flops_saved_mlp,
    "flops_saved_total": lambda s: s.flops_saved,
    "n_evict_calls": lambda s: s.evict_calls,
    "n_evicted": lambda s: s.evicted,
    "n_evicted_leaf": lambda s: s.evicted_leaves,
    "n_evicted_mid": lambda s: s.evicted_merges,
    "max_tree_bytes": lambda s: s.max_tree_bytes,
    "n_requests_over_capacity": lambda s: s.requests_over_capacity,
    "n_under_evict_calls": lambda s: s.under_evict_calls,
    "n_over_evict_calls": lambda s: s.over_evict_calls,
    "n_phantom_match": lambda s: s.phantom_matches,
    "n_phantom_raw": lambda s: s.phantom_raws,
    "n_insert_branchoff": lambda s: s.branch_offs,
    "n_branchoff_in_output": lambda s: s.branch_offs_in_output,
    "n_full_input_match": lambda s: s.full_input_matches,
    "n_zero_margin": lambda s: s.zero_margins,
    "final_nodes": lambda s: s.nodes,
    "final_kv_tokens": lambda s: s.kv_tokens,
    "final_logical_ts": lambda s: s.clock,
    "final_alpha": lambda s: s.alpha,
    "first_evict_request": lambda s: s.first_evict_request,
    "bootstrap_window": lambda s: s.bootstrap_window,
}
"""The golden names of what a summary holds."""

NOT_COMPARED = {"wall_s"}
NOT_RECORDED_FOR_BLOCKS = {
    "n_under_evict_calls",
    "n_over_evict_calls",
    "n_full_input_match",
    "first_evict_request",
}
"""Summary entries that the golden data leaves at nothing for vLLM+."""

PER_REQUEST: dict[str, Callable[[RequestRecord], int | float]] = {
    "matched": lambda r: r.lookup.reusable,
    "raw_prefix": lambda r: r.lookup.raw,
    "branchoff": lambda r: int(r.lookup.branches_off),
    "ins_matched": lambda r: r.inserted.reusable,
    "ins_raw_prefix": lambda r: r.inserted.raw,
    "ins_branchoff": lambda r: int(r.inserted.branches_off),
    "bytes_to_remove": lambda r: r.bytes_to_remove,
    "bytes_freed": lambda r: r.bytes_freed,
    "nodes": lambda r: r.nodes,
    "kv_tokens": lambda r: r.kv_tokens,
}
"""The golden columns with a number for every request."""

PHANTOMS: dict[str, Callable[[Lookup], tuple[int, int]]] = {
    "phantom": lambda look: (look.reusable, look.true_reusable),
    "phantom_raw": lambda look: (look.raw, look.true_raw),
}
"""The golden columns with the requests whose length is wrong: what is reported, what is right."""

EVICTION: dict[str, Callable[[Eviction], object]] = {
    "path": lambda e: [e.path_tokens, e.path_hash],
    "kind": lambda e: 0 if e.kind == "leaf" else 1,
    "own_tokens": lambda e: e.own_tokens,
    "last_access": lambda e: e.last_access,
    "n_candidates": lambda e: e.candidates,
    "score": lambda e: _rounded(e.score),
    "margin": lambda e: _rounded(e.margin),
}
"""The golden columns with an entry for every victim; beside them stands its request."""

IN_ORDER = (
    *("matched", "raw_prefix", "branchoff", "phantom", "phantom_raw"),
    *("ins_matched", "ins_raw_prefix", "ins_branchoff", "bytes_to_remove"),
    *("victims", *EVICTION),
    *("bytes_freed", "nodes", "kv_tokens"),
)
"""All of them as a request makes them, so that what went wrong first is told first."""

NOT_FOR_BLOCKS = {"branchoff", "ins_raw_prefix", "ins_branchoff", "phantom", "phantom_raw"}
ONLY_WHERE_SCORED = {"n_candidates", "score", "margin"}

Place = tuple[int, int]
"""A request, and a rank in ``IN_ORDER``."""


class GoldenError(ValueError):
    """A golden file that cannot be used; says which."""


@dataclass
class FileReport:
    """The outcome for one result file."""

    name: str
    compared: int = 0
    differences: list[str] = field(default_factory=list)
    """One line for each run that differs: its first difference."""
    errors: list[str] = field(default_factory=list)
    """What could not be read."""


def result_files(folder: Path, only: str | None = None) -> list[Path]:
    """The result files of a golden folder; ``only`` is a trace's name, or a trace's and a mode's.

    Raises:
        GoldenError: if there is none.
    """
    names = sorted((folder / "results").glob("*.json.xz"))
    wanted = [path for path in names if only is None or only in (_stem(path), _trace_name(path))]
    if not wanted:
        which = "" if only is None else f" for {only!r}"
        raise GoldenError(f"{folder / 'results'} has no *.json.xz{which}")
    return wanted


def check_result_file(folder: Path, result: Path) -> FileReport:
    """Run everything a result file holds and compare. Never raises for what is in the files."""
    report = FileReport(_stem(result))
    try:
        golden = _read_json(result)
        paths, runs, model, fixes = _header(golden, result)
        requests = list(read_trace(folder / "traces" / f"{_trace_name(result)}.jsonl.xz"))
    except (GoldenError, TraceError) as error:
        report.errors.append(str(error))
        return report
    for number, run in enumerate(runs):
        try:
            config = _config(run, model, MODES[fixes])
            difference = first_difference(run, paths, config, requests)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            report.errors.append(f"{result.name}: run {number}: {type(error).__name__}: {error}")
            continue
        report.compared += 1
        if difference is not None:
            report.differences.append(f"{report.name} {_run_name(run)}: {difference}")
    return report


def first_difference(
    golden: Json, paths: Sequence[object], config: PaperConfig, requests: Requests
) -> str | None:
    """Where a run first departs from its golden data; None if it never does."""
    cache = PaperCache(config)
    records = [cache.serve(*request) for request in requests]
    first = min(_request_differences(golden, paths, records), default=None)
    if first is not None:
        return first[1]
    return next(_closing_differences(golden, paths, cache), None)


def _request_differences(
    golden: Json, paths: Sequence[object], records: Sequence[RequestRecord]
) -> Iterator[tuple[Place, str]]:
    """The first difference of every column, and its place."""
    columns: Json = golden["per_request"]
    expected = {*PER_REQUEST, *PHANTOMS}
    _check_names("per_request", columns, expected - _unrecorded(golden["policy"]))
    for name, number_of in PER_REQUEST.items():
        if name in columns:
            numbers = [number_of(record) for record in records]
            yield from _first_of(name, columns[name], numbers, range(len(numbers)))
    for name, lengths_of in PHANTOMS.items():
        if name in columns:
            lengths = [(record.index, *lengths_of(record.lookup)) for record in records]
            wrong = [[index, right] for index, told, right in lengths if told != right]
            yield from _first_of(name, columns[name], wrong, [index for index, _ in wrong])
    yield from _eviction_differences(golden, paths, records)


def _eviction_differences(
    golden: Json, paths: Sequence[object], records: Sequence[RequestRecord]
) -> Iterator[tuple[Place, str]]:
    columns: Json = golden["evictions"]
    _check_names("evictions", columns, {"req", *EVICTION} - _unrecorded(golden["policy"]))
    victims = [(record.index, victim) for record in records for victim in record.evictions]
    owners = [request for request, _ in victims]
    yield from _first_of("victims", columns["req"], owners, owners)
    for name, ours_of in EVICTION.items():
        if name in columns:
            theirs = [paths[i] for i in columns[name]] if name == "path" else columns[name]
            yield from _first_of(name, theirs, [ours_of(victim) for _, victim in victims], owners)


def _unrecorded(policy: str) -> set[str]:
    """Columns that the golden data of a policy does not have."""
    if policy == "vllm":
        return NOT_FOR_BLOCKS | ONLY_WHERE_SCORED
    return ONLY_WHERE_SCORED if policy == "v1" else set()


def _check_names(where: str, found: Iterable[str], expected: set[str]) -> None:
    """Neither may a golden value be passed over, nor a missing one count as equal."""
    unequal = expected.symmetric_difference(found)
    if unequal:
        raise ValueError(f"{where}: missing or unknown: {', '.join(sorted(unequal))}")


def _first_of(
    name: str, theirs: Sequence[object], ours: Sequence[object], owners: Sequence[int]
) -> Iterator[tuple[Place, str]]:
    """The first unequal pair; ``owners`` tells the request of each entry of ours."""
    pairs = zip(theirs, ours, strict=False)
    index = next((i for i, (golden, mine) in enumerate(pairs) if golden != mine), None)
    if index is not None:
        text = f"golden {theirs[index]}, ours {ours[index]}"
    elif len(theirs) != len(ours):
        index = min(len(theirs), len(ours) - 1)
        text = f"golden has {len(theirs)} entries, ours {len(ours)}"
    else:
        return
    request = owners[index] if owners else 0
    label = f"victim's {name}" if name in EVICTION else name
    yield (request, IN_ORDER.index(name)), f"request {request}: {label}: {text}"


def _closing_differences(golden: Json, paths: Sequence[object], cache: PaperCache) -> Iterator[str]:
    """What differs at the end: summary, tuner, tree."""
    yield from _summary_differences(golden, cache.summary())
    tuner = _tuner_as_golden(cache.tuner)
    if golden["tuner"] != tuner:
        yield f"tuner: golden {golden['tuner']}, ours {tuner}"
    if golden["policy"] != "vllm":
        theirs = [[paths[index], *numbers] for index, *numbers in golden["final_tree"]]
        ours = [
            [[n.path_tokens, n.path_hash], n.own_tokens, n.last_access, n.children]
            for n in cache.tree()
        ]
        for place, (node, mine) in enumerate(zip_longest(theirs, ours)):
            if node != mine:
                yield f"final tree: node {place} in pre-order: golden {node}, ours {mine}"


def _summary_differences(golden: Json, summary: Summary) -> Iterator[str]:
    skipped = NOT_COMPARED | (NOT_RECORDED_FOR_BLOCKS if golden["policy"] == "vllm" else set())
    _check_names("summary", golden["summary"], {*SUMMARY, *NOT_COMPARED})
    for name, value in golden["summary"].items():
        if name in skipped:
            continue
        ours = SUMMARY[name](summary)
        if ours != value:
            yield f"summary: {name}: golden {value}, ours {ours}"


def _tuner_as_golden(report: TunerReport | None) -> Json | None:
    if report is None:
        return None
    return {
        "at_request": report.at_request,
        "window": report.window,
        "table": [
            [t.alpha, t.request_hit_rate, t.token_hit_rate, t.flops_saved] for t in report.trials
        ],
        "best_alpha": report.best_alpha,
        "tied": list(report.tied),
    }


def _read_json(path: Path) -> Json:
    try:
        with lzma.open(path, "rt", encoding="utf-8") as text:
            loaded = json.load(text)
    except json.JSONDecodeError as error:
        raise GoldenError(f"{path.name}: line {error.lineno}: {error.msg}") from error
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise GoldenError(f"{path.name}: {error}") from error
    if not isinstance(loaded, dict):
        raise GoldenError(f"{path.name}: not a JSON object")
    return loaded


def _header(golden: Json, path: Path) -> tuple[list[object], list[Json], PaperModel, str]:
    try:
        label = golden["label"]
        if label not in MODES:
            raise ValueError(f"label {label!r} is none of {', '.join(MODES)}")
        runs, paths = golden["runs"], golden["paths"]
        if not isinstance(runs, list) or not isinstance(paths, list):
            raise TypeError("runs and paths must be lists")
        return paths, runs, PaperModel(**golden["model"]), label
    except (KeyError, TypeError, ValueError) as error:
        raise GoldenError(f"{path.name}: {type(error).__name__}: {error}") from error


def _config(run: Json, model: PaperModel, fixes: Fixes) -> PaperConfig:
    return PaperConfig(
        policy=run["policy"],
        capacity_bytes=run["capacity_bytes"],
        alpha=run["alpha"] or 0.0,
        bootstrap_multiplier=run["bootstrap_multiplier"] or 5,
        fixes=fixes,
        model=model,
        details=True,
    )


def _run_name(run: Json) -> str:
    name = f"{run['policy']} at {run['capacity_bytes'] / 1e9:g} GB"
    if run["policy"] == "v2":
        name += f", bootstrap multiplier {run['bootstrap_multiplier']}"
    if run["policy"] == "v3":
        name += f", alpha {run['alpha']:g}"
    return name


def _stem(result: Path) -> str:
    return result.name.removesuffix(".json.xz")


def _trace_name(result: Path) -> str:
    return _stem(result).rpartition(".")[0]


def _rounded(value: float | None) -> float | None:
    """To the 12 significant digits of the golden data."""
    return None if value is None else float(f"{value:.12g}")
