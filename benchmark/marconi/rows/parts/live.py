"""Parts that real servers make: slices of traces served live, and the demo."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rows.part import TINY, TRACES, Command, Found, Part, Record, percent
from rows.parts.simulated import CACHE_CODE
from rows.store import Row

_ROOT = Path(__file__).resolve().parents[4]
LIVE_CODE = (*CACHE_CODE, "python/sglang/srt/plugins", "benchmark/marconi/live")
#: Servers of the comparison by what rows call them; a split that was advised is named last.
SERVERS = {
    "stock LRU": "lru",
    "policy 2 (0.5)": "policy-2",
    "policy 3": "policy-3",
    "policy 3, elastic": "policy-3-one-memory",
}
ADVISED = "policy-3-advised-split"


def _command(trace: str, scale: int, repeats: int) -> Command:
    return Command(
        (
            *("benchmark/marconi/live_comparison.py", "--trace", f"{TRACES}/{trace}.jsonl.xz"),
            *("--limit", "120", "--scale-lengths", str(scale), "--model", TINY),
            *("--repeats", str(repeats)),
        ),
        "live",
    )


def live_rows(part: str, records: Sequence[Record], command: str) -> list[Row]:
    """A row a server: medians over its repeats, and the span of its hit rates.

    Args:
        records: rows of the comparison, with the FLOPs that each server saved.
    """
    rows = []
    servers = list(dict.fromkeys(str(record["server"]) for record in records))
    for server in servers:
        runs = [record for record in records if record["server"] == server]
        _, advised, ratio = server.partition(", ratio ")
        name = ADVISED if advised else SERVERS.get(server)
        if name is None:
            continue
        hits = [percent(run["token_hit_rate"]) for run in runs]
        row: Row = {
            **{"part": part, "id": f"{part}/{name}", "server": name, "repeats": len(runs)},
            "ttft_p50_ms": round(median(run["ttft_ms"]["p50"] for run in runs), 3),
            "ttft_p95_ms": round(median(run["ttft_ms"]["p95"] for run in runs), 3),
            "token_hit_rate": round(median(hits), 4),
            "token_hit_rate_least": min(hits),
            "token_hit_rate_most": max(hits),
            "flops_saved": percent(median(run["flops_saved"] for run in runs)),
            "requests_per_s": round(median(run["requests_per_s"] for run in runs), 4),
            "measured": {"command": command},
        }
        rows.append({**row, "ratio": float(ratio)} if advised else row)
    return rows


def _with_flops(found: Found) -> list[Record]:
    """The comparison's rows with the FLOPs that hits saved, of the lines of single requests."""
    from lab.costs import load_cost
    from live.comparison import with_flops

    records = found.get("live", ())
    if not records:
        return []
    cost = load_cost(str(_ROOT / TINY / "config.json"))
    return [with_flops(dict(record), cost, found.get("live.requests", ())) for record in records]


def _live_part(name: str, trace: str, scale: int, repeats: int, minutes: float) -> Part:
    command = _command(trace, scale, repeats)
    return Part(
        name,
        f"what real servers hit on a slice of {trace}, and how fast they are",
        minutes,
        LIVE_CODE,
        (command,),
        lambda found: live_rows(name, _with_flops(found), command.typed()),
        needs_quiet=True,
    )


LIVE_CHATS = _live_part("live-chats", "sharegpt-a", 4, 3, 20)
LIVE_AGENTS = _live_part("live-agents", "mini-swe-agent-a", 8, 7, 40)

# -- the demo

_DEMO = Command(
    ("benchmark/marconi/demo.py", "--models", ".cache/tiny-models", "--out", "results/demo"),
    "demo",
    appends=False,
    read=lambda text: demo_records(_ROOT / "results/demo/results.json"),
)


#: What the demo saves of a server that other programs beside it change.
_TIMES = re.compile(r"ttft_|requests_per_s|(in|out)put_throughput|cpu_seconds|run_rates")
#: Cores' worth of other programs' work from which on times are not kept.
_BUSY_CORES = 0.25
#: What the workload was, the same in every row.
_SETTINGS = ("memory_bytes", "kv_tokens", "states", "running", "seed", "scale", "rounds")


def demo_records(path: Path) -> list[Record]:
    """What the demo has saved, one object a workload and server; none where it did not run."""
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []


def demo_rows(records: Sequence[Record], command: str) -> list[Row]:
    """A row a workload and server, with the numbers of it; without times from a busy machine."""
    rows: list[Row] = []
    for record in records:
        workload, server = _words(str(record["workload"])), _words(str(record["server"]))
        busy = record.get("foreign_cores", 0) >= _BUSY_CORES
        measures = {
            key: value
            for key, value in record.items()
            if key not in _SETTINGS and not (busy and _TIMES.match(key))
        }
        row = {"part": "demo", "id": f"demo/{workload}/{server}"}
        row |= {"workload": workload, "server": server}
        rows.append({**row, **demo_figures(_numbers(measures)), "measured": {"command": command}})
    return rows


def demo_figures(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Shares in percent, FLOPs in GFLOPs, everything else as it is."""
    figures = dict(measures)
    if "flops_saved_fraction" in figures:
        figures["gflops_saved"] = figures.pop("flops_saved") / 1e9
        figures["flops_saved"] = percent(figures.pop("flops_saved_fraction"))
    if "token_hit_rate" in figures:
        figures["token_hit_rate"] = percent(figures["token_hit_rate"])
    return figures


def _numbers(measures: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in measures.items():
        if isinstance(value, Mapping):
            found[_words(key).replace("-", "_")] = _numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[_words(key).replace("-", "_")] = value
    return found


def _words(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


DEMO = Part(
    "demo",
    "what the demo's servers hit and how fast they are",
    15,
    (*LIVE_CODE, "benchmark/marconi/demonstration"),
    (_DEMO,),
    lambda found: demo_rows(found.get("demo", ()), _DEMO.typed()),
    needs_quiet=True,
)
