"""Parts that time: tree operations, decisions, a busy server, the tuner; and advice and counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean, median

from rows.cells import CELLS, MODEL, listed_sizes
from rows.part import TINY, TRACES, Command, Found, Part, Record, number, percent, table_records
from rows.parts.simulated import CACHE_CODE, SHADOW_CODE
from rows.store import Row

_CACHE = "python/sglang/srt/mem_cache"

# -- an operation on the tree

_TREE = Command(
    ("benchmark/marconi/tree_speed.py", "--caches", "rust", "python", "1", "2", "3"),
    "tree",
    appends=False,
    read=table_records,
)
_TREE_COLUMNS = {
    "stock, Rust core": "rust",
    "stock, Python core": "python",
    "policy 1": "policy_1",
    "policy 2": "policy_2",
    "policy 3": "policy_3",
}
_RATIOS = re.compile(r"(?P<us>[\d,.]+) \((?P<of_rust>[\d.]+) / (?P<of_python>[\d.]+)\)")


def tree_rows(records: Sequence[Record], command: str) -> list[Row]:
    """A row a line of the table: microseconds, and their ratios to stock's two cores."""
    rows = []
    for record in records:
        nodes, operation = int(number(record["nodes"])), record["µs to"]
        row: Row = {
            **{"part": "tree-speed", "id": f"tree-speed/{nodes}/{operation_id(operation)}"},
            **{"nodes": nodes, "operation": operation},
        }
        for heading, name in _TREE_COLUMNS.items():
            if heading in record:
                found = _RATIOS.fullmatch(record[heading])
                values = found.groupdict() if found else {"us": record[heading]}
                row[name] = {key: number(value) for key, value in values.items()}
        rows.append({**row, "measured": {"command": command}})
    return rows


def operation_id(operation: str) -> str:
    """An operation as a part of an id: ``evict-one-kv-leaf``, ``match-2048``."""
    return re.sub(r"[^a-z0-9]+", "-", operation.lower().replace(",", "").replace("'s", ""))


TREE_SPEED = Part(
    "tree-speed",
    "how long a match, an insert and an eviction take at 10^3 to 10^5 nodes",
    5,
    (
        f"{_CACHE}/mamba_radix",
        f"{_CACHE}/mamba_radix_cache.py",
        f"{_CACHE}/marconi/attach",
        f"{_CACHE}/marconi/eviction",
        f"{_CACHE}/marconi/insight",
        "benchmark/marconi/speed/tree.py",
    ),
    (_TREE,),
    lambda found: tree_rows(found.get("tree", ()), _TREE.typed()),
    needs_quiet=True,
)

# -- a decision alone

_CANDIDATES = Command(
    ("benchmark/marconi/candidates_speed.py", "--steps", "5000"),
    "candidates",
    appends=False,
    read=table_records,
)
_CANDIDATES_COLUMNS = {
    "alpha": "weight",
    "µs a step": "step_us",
    "of it the decision": "decision_us",
    "worst, ms": "worst_ms",
    "scan, µs a step": "scan_us",
    "k": "k",
    "bytes a prefix": "bytes",
}


def candidates_rows(records: Sequence[Record], command: str) -> list[Row]:
    """A row a number of prefixes and policy."""
    rows = []
    for record in records:
        prefixes, policy = int(number(record["prefixes"])), record["policy"]
        row: Row = {
            **{"part": "candidates-speed", "id": f"candidates-speed/{prefixes}/policy-{policy}"},
            **{"prefixes": prefixes, "policy": int(policy)},
        }
        for heading, name in _CANDIDATES_COLUMNS.items():
            if record.get(heading):
                row[name] = number(record[heading])
        rows.append({**row, "measured": {"command": command}})
    return rows


CANDIDATES_SPEED = Part(
    "candidates-speed",
    "how long choosing a victim takes with 10^3 to 10^6 prefixes",
    15,
    (
        f"{_CACHE}/marconi/eviction",
        "benchmark/marconi/speed/candidates.py",
        "benchmark/marconi/speed/scanned_candidates.py",
    ),
    (_CANDIDATES,),
    lambda found: candidates_rows(found.get("candidates", ()), _CANDIDATES.typed()),
    needs_quiet=True,
)

# -- candidates that a decision looks at


def _staircase_command(trace: str) -> Command:
    return Command(
        (
            *("benchmark/marconi/staircase_length.py", "--trace", f"{TRACES}/{trace}.jsonl.xz"),
            *("--memory-gib", listed_sizes(CELLS[trace]), "--model", MODEL),
        ),
        trace,
        appends=False,
        read=table_records,
    )


def _staircase_rows(found: Found) -> list[Row]:
    rows: list[Row] = []
    for trace, sizes in CELLS.items():
        by_size = {float(record["memory, GiB"]): record for record in found.get(trace, ())}
        for capacity, gib in sizes.items():
            record = by_size.get(gib)
            if record is None or not record["k, mean"]:
                continue
            rows.append(
                {
                    **{"part": "staircase", "id": f"staircase/{trace}/{capacity}", "trace": trace},
                    **{"capacity": capacity, "memory_gib": gib},
                    "decisions": int(number(record["decisions"])),
                    "candidates": number(record["candidates, mean"]),
                    "k_mean": number(record["k, mean"]),
                    "k_p99": number(record["k, P99"]),
                    "k_most": int(number(record["k, most"])),
                    "measured": {"command": _staircase_command(trace).typed()},
                }
            )
    return rows


STAIRCASE = Part(
    "staircase",
    "how many candidates a decision of policy 2 looks at on the traces",
    10,
    (*SHADOW_CODE, "benchmark/marconi/speed/staircase.py"),
    tuple(map(_staircase_command, CELLS)),
    _staircase_rows,
)

# -- the split advised

_ADVISE = Command(
    (
        *("benchmark/marconi/advise.py", "--trace", f"{TRACES}/tau-airline.jsonl.xz"),
        *("--model", MODEL, "--memory-gib", "5.19"),
    ),
    "advise",
    appends=False,
    read=lambda text: advised_records(text),
)
_ADVISED = {
    "stock LRU": "lru",
    "stock LRU, 2 states a path": "lru-2-states-a-path",
    "stock LRU, 4 states a path": "lru-4-states-a-path",
    "policy 1 (LRU), judicious": "lru-judicious",
    "policy 3 (value)": "policy-3",
    "policy 3, judicious": "policy-3-judicious",
}


def advised_records(text: str) -> list[Record]:
    """The lines of the advisor's table, as text by ratio."""
    heading: list[str] | None = None
    records = []
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if cells[0] == "policy":
            heading = cells
        elif heading is not None and len(cells) == len(heading):
            records.append(dict(zip(heading, cells, strict=True)))
    return records


def _splits_rows(found: Found) -> list[Row]:
    rows = []
    for record in found.get("advise", ()):
        if record["policy"] not in _ADVISED:
            continue
        name = _ADVISED[record["policy"]]
        values = {
            "one_memory" if key == "elastic" else f"ratio_{key}".replace(".", "_"): number(value)
            for key, value in record.items()
            if key != "policy" and value != "-"
        }
        rows.append(
            {
                **{"part": "splits", "id": f"splits/{name}", "trace": "tau-airline"},
                **{"memory_gib": 5.19, "policy": name, **values},
                "measured": {"command": _ADVISE.typed()},
            }
        )
    return rows


SPLITS = Part(
    "splits",
    "what each split of memory saves of one trace, as the advisor finds it",
    2,
    SHADOW_CODE,
    (_ADVISE,),
    _splits_rows,
)

# -- the tuner's time


_TUNING = Command(
    (
        *("benchmark/marconi/tuning_gain.py", "--trace", f"{TRACES}/sharegpt-a.jsonl.xz"),
        *("--model", MODEL, "--memory-gib", "17.4", "--limit", "3000"),
    ),
    "policy-2",
    appends=False,
)


def _tuning_rows(found: Found) -> list[Row]:
    return [
        {
            **{"part": "tuning-gain", "id": "tuning-gain/policy-2"},
            **{"trace": "sharegpt-a", "memory_gib": 17.4, "policy": "2"},
            "requests": record["requests"],
            "choices": len(record["fixed"]),
            "cpu_ms_a_request": round(1000 * record["tuning_cpu_seconds"] / record["requests"], 4),
            "tuned": percent(record["tuned"]),
            "best_fixed": percent(record["best_fixed_saved"]),
            "measured": {"command": _TUNING.typed()},
        }
        for record in found.get("policy-2", ())
    ]


TUNING_GAIN = Part(
    "tuning-gain",
    "what tuning costs a request, and what it saves beside the best fixed weight",
    10,
    (*SHADOW_CODE, "benchmark/marconi/lab/tuning_gain.py"),
    (_TUNING,),
    _tuning_rows,
    needs_quiet=True,
)

# -- a busy server

_SERVERS = ("stock", "control", "policy-1", "policy-2", "policy-3")
_BUSY = Command(
    (
        *("benchmark/marconi/server_overhead.py", "--model", TINY),
        *("--servers", *_SERVERS, "--fill", "10500", "--launches", "3"),
    ),
    "servers",
)


def busy_rows(records: Sequence[Record], command: str) -> list[Row]:
    """A row a server, over all its launches and runs."""
    rates = {(one["server"], one["launch"], one["run"]): one["requests_per_s"] for one in records}
    rows = []
    for server in _SERVERS:
        runs = [one for one in records if one["server"] == server]
        launches = sorted({one["launch"] for one in runs})
        if not runs:
            continue
        ratios = [
            median(
                one["requests_per_s"] / rates["stock", launch, one["run"]]
                for one in runs
                if one["launch"] == launch
            )
            for launch in launches
        ]
        total = {name: sum(one["scheduler"][name] for one in runs) for name in runs[0]["scheduler"]}
        sent = sum(one["requests"] for one in runs)
        rows.append(
            {
                **{"part": "busy-server", "id": f"busy-server/{server}", "server": server},
                **{f"launch_{place}": round(ratio, 4) for place, ratio in enumerate(ratios, 1)},
                "rate_of_stock": round(fmean(ratios), 4),
                "token_hit_rate": percent(fmean(one["token_hit_rate"] for one in runs)),
                "ttft_mean_ms": round(fmean(one["ttft_ms"]["mean"] for one in runs), 2),
                "cpu_ms": round(1000 * sum(one["cpu_seconds"] for one in runs) / sent, 4),
                "forward_ms": round(1000 * total["forward"] / sent, 4),
                "rest_ms": round(1000 * total["rest"] / sent, 4),
                "evicting_calls": int(total["calls"]),
                "evicting_mean_ms": round(1000 * total["seconds"] / max(total["calls"], 1), 4),
                "over_2_ms": int(total["calls"] - total["0.002"]),
                "over_5_ms": int(total["calls"] - total["0.005"]),
                "evicting_share": percent(total["seconds"] / sum(one["seconds"] for one in runs)),
                "measured": {"command": command},
            }
        )
    return rows


BUSY_SERVER = Part(
    "busy-server",
    "what the policies cost a busy server, beside stock and a second stock server",
    60,
    (
        *CACHE_CODE,
        f"{_CACHE}/marconi/insight",
        "python/sglang/srt/plugins",
        "benchmark/marconi/speed/server.py",
        "benchmark/marconi/live",
    ),
    (_BUSY,),
    lambda found: busy_rows(found.get("servers", ()), _BUSY.typed()),
    needs_quiet=True,
)
