"""From what was sent to one row a server and run, and to a table of rows side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from demonstration.measures import quantile

from live.run import Sent
from live.tables import markdown_table

QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
#: Label, path into a row, factor, digits.
_LINES = (
    ("requests answered", ("answered",), 1, 0),
    ("requests failed", ("failed",), 1, 0),
    ("token hit rate, %", ("token_hit_rate",), 100, 1),
    ("request hit rate, %", ("request_hit_rate",), 100, 1),
    ("TTFT mean, ms", ("ttft_ms", "mean"), 1, 1),
    ("TTFT P50, ms", ("ttft_ms", "p50"), 1, 1),
    ("TTFT P95, ms", ("ttft_ms", "p95"), 1, 1),
    ("TTFT P99, ms", ("ttft_ms", "p99"), 1, 1),
    ("inter-token latency mean, ms", ("itl_ms", "mean"), 1, 1),
    ("inter-token latency P99, ms", ("itl_ms", "p99"), 1, 1),
    ("requests/s", ("requests_per_s",), 1, 2),
    ("input tokens/s", ("input_tokens_per_s",), 1, 0),
    ("output tokens/s", ("output_tokens_per_s",), 1, 0),
    ("CPU seconds of the server", ("server_cpu_seconds",), 1, 1),
    ("states evicted (Marconi's count)", ("marconi", "states_evicted"), 1, 0),
    ("KV tokens evicted (Marconi's count)", ("marconi", "kv_tokens_evicted"), 1, 0),
    ("tokens lost: state evicted", ("marconi", "lost_tokens", "state_evicted"), 1, 0),
    ("tokens lost: KV evicted", ("marconi", "lost_tokens", "kv_evicted"), 1, 0),
)
_COUNTS = frozenset({"requests answered", "requests failed"})


def summary(sent: Sequence[Sent]) -> dict[str, Any]:
    """The figures of one run; those that the server does not tell are None.

    ``token_hit_rate`` is over the answered prompts' tokens; latencies in milliseconds, from the
    client's side; rates over the time from the first request out to the last reply in.
    """
    answers = [one.answer for one in sent if one.answer is not None]
    errors = Counter(one.error for one in sent if one.error is not None)
    cached = [answer.cached_tokens for answer in answers]
    told = [count for count in cached if count is not None]
    known = len(told) == len(answers) > 0
    asked = sum(answer.prompt_tokens for answer in answers)
    said = sum(len(answer.tokens) for answer in answers)
    seconds = max((s.end for s in sent), default=0.0) - min((s.start for s in sent), default=0.0)
    return {
        "requests": len(sent),
        "answered": len(answers),
        "failed": sum(errors.values()),
        "errors": dict(errors.most_common()),
        "input_tokens": asked,
        "output_tokens": said,
        "cached_tokens": sum(told) if known else None,
        "token_hit_rate": sum(told) / max(asked, 1) if known else None,
        "request_hit_rate": sum(count > 0 for count in told) / len(told) if known else None,
        "ttft_ms": milliseconds([answer.ttft for answer in answers]),
        "itl_ms": milliseconds([gap for answer in answers for gap in answer.gaps]),
        "seconds": seconds,
        "requests_per_s": _per(len(answers), seconds),
        "input_tokens_per_s": _per(asked, seconds),
        "output_tokens_per_s": _per(said, seconds),
    }


def request_row(one: Sent) -> dict[str, Any]:
    """One request, as written to ``--per-request``; times in seconds from the run's start."""
    row: dict[str, Any] = {
        "index": one.turn.index,
        "session": one.turn.session,
        "due": one.due,
        "start": one.start,
        "end": one.end,
        "prompt_tokens": len(one.prompt),
        "error": one.error,
    }
    if one.answer is not None:
        row |= {
            "cached_tokens": one.answer.cached_tokens,
            "output_tokens": len(one.answer.tokens),
            "ttft": one.answer.ttft,
            "seconds": one.answer.seconds,
        }
    return row


def counted_between(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """What Marconi counted between two readings, replicas added up; None without counters.

    Of what is no count (options, fractions, the clock) the last reading is kept for one replica.
    """
    if not after or len(before) != len(after):
        return None
    total: dict[str, Any] = {}
    for old, new in zip(before, after, strict=True):
        for key, value in new.items():
            if key in _COUNTED:
                total[key] = total.get(key, 0) + value - old.get(key, 0)
            elif isinstance(value, dict):
                inner: dict[str, Any] = total.setdefault(key, {})
                was: Mapping[str, Any] = old.get(key, {})
                for name, count in value.items():
                    inner[name] = inner.get(name, 0) + count - was.get(name, 0)
            elif key not in _FRACTIONS:
                total[key] = value
    return total


_COUNTED = frozenset(
    (
        *("requests", "requests_hit", "input_tokens", "hit_tokens", "flops_saved"),
        *("bytes_evicted", "flops_evicted", "kv_tokens_evicted", "states_evicted", "errors"),
    )
)
# Over all time since the server's start; the row has its own.
_FRACTIONS = frozenset({"token_hit_rate", "flops_saved_fraction"})


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows side by side, each figure's ratio to the first row's behind it."""
    header = ["", *(str(row["server"]) for row in rows)]
    lines = [header]
    for label, path, factor, digits in _LINES:
        values = [_at(row, path) for row in rows]
        if all(value is None for value in values):
            continue
        cells = []
        for place, value in enumerate(values):
            cell = "-" if value is None else f"{factor * value:.{digits}f}"
            base = values[0]
            if place and value is not None and base and label not in _COUNTS:
                cell += f" (x {value / base:.2f})"
            cells.append(cell)
        lines.append([label, *cells])
    return markdown_table(lines)


def mean_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a server: the mean of each figure over its repeats, in order of appearance."""
    by_server: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_server.setdefault(str(row["server"]), []).append(row)
    merged = []
    for server, runs in by_server.items():
        one: dict[str, Any] = {"server": server}
        for _, path, _, _ in _LINES:
            values = [_at(run, path) for run in runs]
            known = [value for value in values if value is not None]
            inner = one
            for key in path[:-1]:
                inner = inner.setdefault(key, {})
            inner[path[-1]] = sum(known) / len(known) if known else None
        merged.append(one)
    return merged


def milliseconds(seconds: Sequence[float]) -> dict[str, float | None]:
    """Mean and quantiles in milliseconds; None without any."""
    ordered = sorted(1000 * one for one in seconds)
    if not ordered:
        return {"mean": None, **dict.fromkeys(QUANTILES)}
    mean = sum(ordered) / len(ordered)
    return {"mean": mean, **{name: quantile(ordered, q) for name, q in QUANTILES.items()}}


def _per(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _at(row: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = row
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return None if value is None else float(value)
