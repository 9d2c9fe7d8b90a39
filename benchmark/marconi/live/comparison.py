"""Real servers on a slice of a trace, in equal memory: stock LRU, policies 2 and 3, elastic.

    python benchmark/marconi/live_comparison.py --trace sharegpt-a.jsonl.xz --limit 300 \\
        --scale-lengths 4 --model TINY --repeats 3 --out rows.jsonl

The memory is the slice's `--capacity` (as of `simulate.py`) for the small model that serves it,
divided at SGLang's default split, at the one that the simulator advises, or not at all. The servers
come one after another, each repeat in another order; rows that `--out` has are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lab.capacity import CAPACITIES, find_capacities
from lab.costs import DEFAULT_RATIO, load_cost, split_memory
from lab.shadow_world import hashed_requests
from lab.spec import RunSpec
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.marconi.advice.replay import advise
from traces import read_trace
from traces.writers import WriterOptions, write_trace

from live import replay
from live.server_api import ServerUnreachable
from live.servers import ServerFailed
from live.tables import markdown_table
from live.workload import Selection

POLICY_3 = "policy 3 (value)"
#: States that a running request holds on a server without overlap scheduling, and one to insert.
STATES_A_REQUEST = 3
FIGURES = (
    ("TTFT P50, ms", ("ttft_ms", "p50"), 1),
    ("TTFT P95, ms", ("ttft_ms", "p95"), 1),
    ("token hit rate, %", ("token_hit_rate",), 100),
    ("prefill FLOPs saved, %", ("flops_saved",), 100),
    ("requests/s", ("requests_per_s",), 1),
    ("CPU seconds of the server", ("server_cpu_seconds",), 1),
)


@dataclass(frozen=True)
class Pools:
    """Memory at one split, as the servers are told of it."""

    ratio: float
    tokens: int
    states: int

    def flags(self) -> str:
        return f"--max-total-tokens {self.tokens} --max-mamba-cache-size {self.states}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing and print the table; 1 when a server could not be measured."""
    options = parse_arguments(argv)
    try:
        sent = write_slice(options)
        gib = find_capacities(spec_of(sent, options), [options.capacity], options.cache)
        memory = Memory(gib[options.capacity], sent, options)
        ratio = options.ratio or memory.advised_ratio()
        default, advised = memory.pools_at(DEFAULT_RATIO), memory.pools_at(ratio)
        played = replay.parse_arguments(replay_arguments(sent, default, advised, options))
        rows = measured(sent, played, options)
    except (ServerUnreachable, ServerFailed, ValueError, OSError) as error:
        print(f"live_comparison: {error}", file=sys.stderr)
        return 1
    print(
        f"{options.trace.name}, {len(memory.requests)} requests, lengths divided by "
        f"{options.scale_lengths}, {options.capacity} memory {1024 * memory.gib:.3g} MiB: "
        f"{default.tokens} tokens and {default.states} states at {DEFAULT_RATIO:g}, "
        f"{advised.tokens} and {advised.states} at {ratio:g}; medians of {options.repeats}\n"
    )
    print(table(rows, [target.label for target in replay.make_targets(played)]))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the small model's folder")
    parser.add_argument("--out", type=Path, required=True, help="a JSON row a server and repeat")
    parser.add_argument("--limit", type=int, default=200, help="the slice: so many first requests")
    parser.add_argument("--scale-lengths", type=int, default=4, help="divide all lengths by this")
    parser.add_argument("--capacity", choices=sorted(CAPACITIES), default="middle")
    parser.add_argument("--ratio", type=float, help="the advised split; by default found out")
    parser.add_argument("--eff-weight", default="0.5", help="of policy 2")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log-dir", type=Path)
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/lab"), help="found capacities, and the slice"
    )
    return parser.parse_args(argv)


# -- the slice and the memory


def scaled_block(options: argparse.Namespace) -> int:
    """Tokens that a block id stands for in what is sent."""
    selection = Selection(divisor=options.scale_lengths, block=int(read_trace(options.trace).block))
    return selection.scaled_block


def write_slice(options: argparse.Namespace) -> Path:
    """A trace of what is sent, lengths divided; simulator and servers read the same file."""
    reader = read_trace(options.trace)
    selection = Selection(
        limit=options.limit, divisor=options.scale_lengths, block=int(reader.block)
    )
    requests = [turn.request for turn in selection.turns(reader)]
    name = options.trace.name.partition(".")[0]
    path: Path = options.cache / f"{name}-{options.limit}-by-{options.scale_lengths}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_trace(requests, path, "blocks", WriterOptions(block=selection.scaled_block))
    return path


def spec_of(sent: Path, options: argparse.Namespace) -> RunSpec:
    """The simulator's run of the slice on the model that serves it; its memory is not set yet."""
    return RunSpec(
        trace=str(sent),
        policy="lru",
        model=str(options.model / "config.json"),
        kv_tokens=0,
        state_slots=0,
        block=scaled_block(options),
    )


class Memory:
    """The bytes of every server, and the pools that they make.

    Attributes:
        gib: of both pools together.
        requests: of the slice.
    """

    def __init__(self, gib: float, sent: Path, options: argparse.Namespace) -> None:
        self.gib = gib
        self._cost = load_cost(str(options.model / "config.json"))
        self._block = scaled_block(options)
        self._running = options.concurrency
        self.requests = list(read_trace(sent, block=self._block))

    def pools_at(self, ratio: float) -> Pools:
        """The pools at a split.

        Raises:
            ValueError: the slice could not run in them.
        """
        tokens, states = split_memory(self.gib, ratio, self._cost)
        longest = max(one.input_length + one.output_length for one in self.requests)
        if tokens <= longest or states < STATES_A_REQUEST * self._running:
            raise ValueError(
                f"the slice's memory makes {tokens} tokens and {states} states at the split "
                f"{ratio:g}; allowed are more than {longest} tokens, the longest request's, and "
                f"at least {STATES_A_REQUEST} states for each of --concurrency {self._running}"
            )
        return Pools(ratio, tokens, states)

    def advised_ratio(self) -> float:
        """The split at which policy 3 saves most FLOPs of the slice, by the simulator.

        Raises:
            ValueError: the slice could not run at the default split.
        """
        self.pools_at(DEFAULT_RATIO)
        requests = list(hashed_requests(self.requests, self._block))
        advice = advise(
            requests,
            self._cost,
            self.gib * 2**30,
            block_tokens=self._block,
            rows=[POLICY_3],
        )
        fitting = []
        for ratio in advice.ratios:
            with suppress(ValueError):
                self.pools_at(ratio)
                fitting.append((advice.saved[POLICY_3].get(f"{ratio:g}", 0.0), -ratio))
        return -max(fitting)[1]


# -- the servers


def contenders(default: Pools, advised: Pools, options: argparse.Namespace) -> dict[str, str]:
    """Flags of each server, by its name; the first is what the others are set against."""
    value = "--marconi-evict-policy 3"
    paper = f"--marconi-evict-policy 2 --marconi-eff-weight {options.eff_weight}"
    servers = {
        "stock LRU": default.flags(),
        f"policy 2 ({options.eff_weight})": f"{default.flags()} {paper}",
        "policy 3": f"{default.flags()} {value}",
        "policy 3, elastic": f"{default.flags()} {value} --enable-unified-memory",
    }
    if advised != default:
        servers[f"policy 3, ratio {advised.ratio:g}"] = f"{advised.flags()} {value}"
    return servers


def replay_arguments(
    sent: Path, default: Pools, advised: Pools, options: argparse.Namespace
) -> list[str]:
    """The command line of `replay.py` that this is a series of."""
    common = (
        f"--mamba-radix-cache-strategy extra_buffer --max-running-requests {options.concurrency} "
        "--context-length 16384"
    )
    arguments = [
        *("--trace", str(sent), "--block", str(scaled_block(options)), "--ignore-eos"),
        *("--warm-up", str(options.warm_up), "--concurrency", str(options.concurrency)),
        *("--repeats", str(options.repeats), "--model", str(options.model), "--flush-cache"),
        *("--port", str(options.port), "--out", str(options.out)),
        *("--per-request", str(requests_file(options.out))),
    ]
    if options.log_dir is not None:
        arguments += ["--log-dir", str(options.log_dir)]
    for label, flags in contenders(default, advised, options).items():
        arguments += ["--launch", f"{common} {flags}", "--label", label]
    return arguments


def measured(
    sent: Path, played: argparse.Namespace, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row a server and repeat: those of an earlier call, and the others after playing them."""
    turns = replay.make_selection(played).turns(read_trace(sent, block=played.block))
    targets = replay.make_targets(played)
    wanted = [
        (target, run) for run in range(options.repeats) for target in replay.rotated(targets, run)
    ]
    rows = []
    for target, run in wanted:
        key = sent.name, target.label, list(target.arguments), run
        row = next((row for row in read_rows(options.out) if _key(row) == key), None)
        rows.append(row or replay.measure(target, run, turns, played))
    cost = load_cost(str(options.model / "config.json"))
    requests = read_rows(requests_file(options.out))
    return [with_flops(row, cost, requests) for row in rows]


def _key(row: Mapping[str, Any]) -> tuple[str, str, list[str], int]:
    return row["trace"], row["server"], row["arguments"], row["run"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """JSON lines; none where there is no file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def requests_file(out: Path) -> Path:
    """Where the lines of single requests go."""
    return out.with_suffix(".requests.jsonl")


def with_flops(
    row: dict[str, Any], cost: ModelCost, requests: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The row with the share of the served model's prefill FLOPs that hits saved."""
    done = needed = 0.0
    for one in requests:
        if (one["trace"], one["server"], one["run"]) == (row["trace"], row["server"], row["run"]):
            done += cost.flops(0, one.get("cached_tokens") or 0)
            needed += cost.flops(0, one["prompt_tokens"])
    return {**row, "flops_saved": done / needed if needed else None}


# -- the table


def table(rows: Sequence[Mapping[str, Any]], servers: Sequence[str]) -> str:
    """Medians over the repeats; times and rates with their ratio to the first server's."""
    lines = [["", *servers]]
    for label, path, factor in FIGURES:
        values = [
            median([factor * _at(row, path) for row in rows if row["server"] == server])
            for server in servers
        ]
        lines.append([label, *(_cell(value, values[0], label) for value in values)])
    return markdown_table(lines)


def _at(row: Mapping[str, Any], path: Sequence[str]) -> float:
    value: Any = row
    for key in path:
        value = value[key]
    return float(value)


def _cell(value: float, base: float, label: str) -> str:
    digits = 2 if "/s" in label else 1
    if value is base:
        return f"{value:.{digits}f}"
    change = f"{value - base:+.1f}" if "%" in label else f"x {value / base:.2f}"
    return f"{value:.{digits}f} ({change})"


if __name__ == "__main__":
    sys.exit(main())
