"""What does Marconi cost a busy server? Stock with its Rust tree core beside the policies.

    python benchmark/marconi/server_overhead.py --model TINY [--mode unified]

``--mode`` chooses the memory of all servers: two pools (``static``), one for states and KV
(``unified``), or two with a host tier of twice their size below (``hicache``). SGLang schedules in
overlap; with one memory the CPU platform cannot. ``SGLANG_CPU_REFERENCE_OVERLAP=0`` turns it off.

The servers stand side by side. Each is filled with short sessions until its pools evict, then gets
runs of the same requests in turn: many at a time, with short outputs, a closed loop. Every run
starts with another server. ``--launches`` does all of that anew with other processes, for two
servers with the same flags differ by several percent for as long as they run: ``control`` is a
second stock server, which shows by how much.

The first table gives means over the runs with ratios to stock's. The second has, of the runs
alone, the median of each run's own ratio of rates and the CPU time of each server's processes,
which a slow moment of the machine disturbs less than mean rates, and what SGLang's own metrics say
of the model's forwards, of the rest of the scheduler's steps
(``sglang:scheduler_stage_seconds_total``) and of the calls that evict
(``sglang:eviction_duration_seconds``). The last has each launch's ratio of rates.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import requests
from live.history import TokenSource
from live.rows import counted_between, mean_rows, summary, table
from live.run import Pace, Player
from live.server_api import ASK_SECONDS, ServerUnreachable, marconi_counters, served_model
from live.servers import Pools, Server, ServerFailed, launch_servers
from live.tables import markdown_table
from live.workload import Turn
from prometheus_client.parser import text_string_to_metric_families
from traces import Request

BLOCK, VOCAB_SIZE = 64, 256
FLAGS: dict[str, tuple[str, ...]] = {
    "stock": (),
    "policy-1": ("--marconi-evict-policy", "1"),
    "policy-2": ("--marconi-evict-policy", "2", "--marconi-eff-weight", "0.5"),
    "policy-3": ("--marconi-evict-policy", "3"),
    "control": (),
}
MODES: dict[str, tuple[str, ...]] = {
    "static": (),
    "unified": ("--enable-unified-memory",),
    "hicache": ("--enable-hierarchical-cache", "--hicache-ratio", "2"),
}
EVICTIONS = "sglang:eviction_duration_seconds"
STAGES = "sglang:scheduler_stage_seconds_total"
#: Seconds; upper bounds of buckets of the time of evictions.
LIMITS = ("0.001", "0.002", "0.005", "0.01")


def main(argv: Sequence[str] | None = None) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    options = parse_arguments(argv)
    # The CPU platform leaves it out unless it is asked for.
    os.environ.setdefault("SGLANG_CPU_REFERENCE_OVERLAP", "1")
    try:
        with tempfile.TemporaryDirectory(prefix="server-overhead-") as scratch:
            logs = options.log_dir or Path(scratch)
            logs.mkdir(parents=True, exist_ok=True)
            flags = {name: (*FLAGS[name], *common_flags(options)) for name in options.servers}
            rows: list[dict[str, Any]] = []
            for launch in range(options.launches):
                with launch_servers(options.model, flags, logs, port=options.port) as servers:
                    rows += measure(servers, options, launch)
    except (ServerFailed, ServerUnreachable, OSError) as error:
        print(f"server_overhead: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; no server is left running.", file=sys.stderr)
        return 130
    order = list(options.servers)
    print(table(sorted(mean_rows(rows), key=lambda row: order.index(row["server"]))))
    print()
    print(markdown_table(cost_table(rows, order)))
    print()
    print(markdown_table(launch_table(rows, order)))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a tiny model")
    parser.add_argument("--servers", nargs="+", choices=list(FLAGS), default=list(FLAGS)[:3])
    parser.add_argument("--mode", choices=list(MODES), default="static")
    parser.add_argument("--states", type=int, default=10_000, help="slots of the state pool")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="a turn adds so many")
    parser.add_argument("--output-tokens", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2, help="of a session")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--fill", type=int, help="requests before; default: --states")
    parser.add_argument("--requests", type=int, default=600, help="of a run")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each launch")
    parser.add_argument("--launches", type=int, default=1, help="times that servers start anew")
    parser.add_argument("--port", type=int, default=0, help="first port (default: free ones)")
    parser.add_argument("--log-dir", type=Path, help="keep the servers' logs here")
    parser.add_argument("--out", type=Path, help="append a JSON row a server and run")
    options = parser.parse_args(argv)
    for name, value in vars(options).items():
        least = 0 if name in ("port", "fill") else 1
        if isinstance(value, int) and value < least:
            parser.error(f"--{name.replace('_', '-')} is {value}; allowed is {least} or more")
    return options


def common_flags(options: argparse.Namespace) -> tuple[str, ...]:
    # Where each prompt's state has its slot, three quarters of their KV fit: both pools evict.
    kv_tokens = options.states * options.prompt_tokens * 3 // 4
    return (
        # An idle server would take a core from the one that is measured.
        *("--mamba-radix-cache-strategy", "extra_buffer", "--enable-metrics", "--sleep-on-idle"),
        *Pools(kv_tokens, options.states, running=options.concurrency).arguments(),
        *MODES[options.mode],
    )


def measure(
    servers: dict[str, Server], options: argparse.Namespace, launch: int
) -> list[dict[str, Any]]:
    """One row a server and run; each launch has another server first."""
    names = list(servers)
    names = names[launch % len(names) :] + names[: launch % len(names)]
    pace = Pace(None, options.concurrency)
    players = {
        name: Player(
            server.base_url,
            TokenSource(BLOCK, VOCAB_SIZE),
            api="generate",
            model=served_model(server.base_url),
            ignore_eos=True,
            timeout=ASK_SECONDS,
        )
        for name, server in servers.items()
    }
    workload = sessions(options.turns, options.prompt_tokens, options.output_tokens)
    fill = take(workload, options.states if options.fill is None else options.fill)
    for name in names:
        print(f"filling {name}", file=sys.stderr, flush=True)
        players[name].play(fill, pace, lambda sent: None)
    rows = []
    for run in range(options.repeats):
        turns = take(workload, options.requests)
        for place in range(len(names)):
            name = names[(run + place) % len(names)]
            url = servers[name].base_url
            counted, before = marconi_counters(url), scheduler_metrics(url)
            cpu = servers[name].cpu_seconds()
            sent = players[name].play(turns, pace, lambda sent: None)
            cpu, after = servers[name].cpu_seconds() - cpu, scheduler_metrics(url)
            row = {
                "server": name,
                "mode": options.mode,
                "launch": launch,
                "run": run,
                **summary(sent),
                "marconi": counted_between(counted, marconi_counters(url)),
                "cpu_seconds": cpu,
                "scheduler": {key: after[key] - before[key] for key in after},
            }
            print(
                f"launch {launch}, run {run}: {name} {row['requests_per_s']:.1f}/s",
                file=sys.stderr,
                flush=True,
            )
            rows.append(row)
            if options.out is not None:
                with options.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")
    return rows


def sessions(turns: int, prompt_tokens: int, output_tokens: int) -> Iterator[Turn]:
    """Turns of sessions without end, groups of sessions taking their turns together."""
    group, index = 32, 0
    for first in range(0, sys.maxsize, group):
        for turn in range(turns):
            length = (turn + 1) * prompt_tokens + turn * output_tokens
            for session in range(first, first + group):
                blocks = tuple(session << 20 | place for place in range(length // BLOCK))
                request = Request(0.0, str(session), length, output_tokens, blocks, ())
                yield Turn(index, str(session), request)
                index += 1


def take(workload: Iterator[Turn], count: int) -> list[Turn]:
    return [next(workload) for _ in range(count)]


def scheduler_metrics(url: str) -> dict[str, float]:
    """What a server's scheduler did so far.

    Calls that evicted, their seconds, and how many took up to each of ``LIMITS``; seconds in the
    model's forwards and, unless idle, in all the rest.
    """
    answer = requests.get(url + "/metrics", timeout=ASK_SECONDS)
    answer.raise_for_status()
    found = dict.fromkeys(("calls", "seconds", *LIMITS, "forward", "rest"), 0.0)
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name == f"{EVICTIONS}_count":
                found["calls"] += sample.value
            elif sample.name == f"{EVICTIONS}_sum":
                found["seconds"] += sample.value
            elif sample.name == f"{EVICTIONS}_bucket" and sample.labels["le"] in LIMITS:
                found[sample.labels["le"]] += sample.value
            elif sample.name == STAGES and sample.labels["category"] != "idle":
                is_forward = sample.labels["category"] == "run_batch"
                found["forward" if is_forward else "rest"] += sample.value
    return found


def cost_table(rows: Sequence[dict[str, Any]], order: Sequence[str]) -> list[list[str]]:
    """All runs of each server together.

    The ratio of rates is that to the first server in the same run, and its median over the runs.
    """
    limits = [f"over {1000 * float(limit):g} ms" for limit in LIMITS]
    head = ["", "requests/s, median ratio", "CPU, ms a request", "forwards, ms", "the rest, ms"]
    lines = [[*head, "calls that evict", "mean, ms", *limits, "% of the time"]]
    for name in order:
        runs = [row for row in rows if row["server"] == name]
        total = {key: sum(run["scheduler"][key] for run in runs) for key in runs[0]["scheduler"]}
        mean = 1000 * total["seconds"] / total["calls"] if total["calls"] else 0.0
        share = 100 * total["seconds"] / sum(run["seconds"] for run in runs)
        over = [f"{total['calls'] - total[limit]:.0f}" for limit in LIMITS]
        sent = sum(run["requests"] for run in runs)
        spent = (sum(run["cpu_seconds"] for run in runs), total["forward"], total["rest"])
        each = [f"{1000 * seconds / sent:.2f}" for seconds in spent]
        calls = [f"{total['calls']:.0f}", f"{mean:.3f}", *over]
        ratio = median(ratios(rows, name, order[0]).values())
        lines.append([name, f"{ratio:.3f}", *each, *calls, f"{share:.2f}"])
    return lines


def launch_table(rows: Sequence[dict[str, Any]], order: Sequence[str]) -> list[list[str]]:
    """The median ratio of rates within each launch, and the mean of those."""
    launches = sorted({row["launch"] for row in rows})
    lines = [["requests/s, ratio", *(f"launch {number + 1}" for number in launches), "mean"]]
    for name in order:
        each = ratios(rows, name, order[0])
        medians = [median(each[key] for key in each if key[0] == launch) for launch in launches]
        lines.append([name, *(f"{value:.3f}" for value in (*medians, fmean(medians)))])
    return lines


def ratios(rows: Sequence[dict[str, Any]], name: str, base: str) -> dict[tuple[int, int], float]:
    """Requests a second of one server to another's, by launch and run."""
    rates = {(row["server"], row["launch"], row["run"]): row["requests_per_s"] for row in rows}
    runs = [(row["launch"], row["run"]) for row in rows if row["server"] == name]
    return {run: rates[name, *run] / rates[base, *run] for run in runs}


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
