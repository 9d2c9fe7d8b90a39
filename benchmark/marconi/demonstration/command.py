"""Starts the servers, serves the workloads and reports: what `demo.py` does."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from live.server_api import ServerUnreachable
from live.servers import Server, ServerFailed, launch_servers
from sglang.srt.marconi_utils import ModelCost
from tqdm import tqdm

from demonstration.chat import warm_up
from demonstration.contenders import PAPER, TITLES
from demonstration.figure import draw
from demonstration.load import ForeignLoad
from demonstration.measures import Measures, measure
from demonstration.plan import Plan, command_line, make_plan
from demonstration.report import Comparison, rows, table, verdict
from demonstration.workloads import NAMES, PLAYERS, about

MIB = 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when it measured all, 1 when a server or request failed."""
    # A closed terminal or a kill must stop the servers as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        plan, out, cost = make_plan(argv)
        out.mkdir(parents=True, exist_ok=True)
        run(plan, out, cost, command_line(argv))
    except (ServerFailed, ServerUnreachable, RuntimeError, ValueError, OSError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; no server is left running.", file=sys.stderr)
        return 130
    return 0


def run(plan: Plan, out: Path, cost: ModelCost, command: str) -> None:
    """Start the servers, serve the workloads, and report."""
    started = time.monotonic()
    print(introduction(plan, cost), file=sys.stderr)
    loads: list[ForeignLoad] = []
    measured: dict[str, dict[str, Measures]] = {name: {} for name in plan.workloads}
    for flags in launches(plan):
        with _started(plan, flags, out) as servers, ForeignLoad() as load:
            for workload in plan.workloads:
                measured[workload] |= play(plan, workload, servers, cost, out)
                if len(measured[workload]) > 1:
                    # So that a run that is broken off has said something.
                    print(verdict(compared(plan, workload, measured[workload])), file=sys.stderr)
        loads.append(load)
    comparisons = [compared(plan, name, measures) for name, measures in measured.items()]
    busiest = max(loads, key=lambda load: load.cores)
    text = report(plan, comparisons, cost, busiest)
    paths = save(plan, comparisons, cost, busiest, text, command, out)
    print(f"\n{text}")
    print(f"Measured in {(time.monotonic() - started) / 60:.1f} minutes. Saved:")
    for path in paths:
        print(f"  {path}")


def launches(plan: Plan) -> list[dict[str, tuple[str, ...]]]:
    """Flags by server: of all at once, or of one after another where they share no GPU."""
    flags = plan.server_flags()
    return [flags] if plan.side_by_side else [{name: flags[name]} for name in flags]


def play(
    plan: Plan, workload: str, servers: Mapping[str, Server], cost: ModelCost, out: Path
) -> dict[str, Measures]:
    """Play one workload on some servers and sum up, from empty caches on."""
    for server in servers.values():
        warm_up(server.base_url)
        server.flush_cache()
    before = {name: server.marconi_counters() for name, server in servers.items()}
    runs = PLAYERS[workload](plan, servers, out)
    return {
        name: measure(runs[name], cost.flops, before[name], server.marconi_counters())
        for name, server in servers.items()
    }


def introduction(plan: Plan, cost: ModelCost) -> str:
    """What is about to happen, and on how much."""
    how = "side by side, busy one after the other" if plan.side_by_side else "one after another"
    lines = [
        f"{len(plan.servers)} servers ({', '.join(TITLES[name] for name in plan.servers)}), {how}, "
        f"each with {memory(plan, cost)}."
    ]
    lines += [f"{NAMES[name]}: {about(plan, name)}" for name in plan.workloads]
    if not plan.side_by_side:
        lines.append(never_run())
    return "\n".join(lines)


def memory(plan: Plan, cost: ModelCost) -> str:
    """The cache of every server, in words."""
    pools = plan.pools
    return (
        f"{plan.memory_bytes(cost) / MIB:,.1f} MiB of cache: {pools.kv_tokens:,} KV tokens and "
        f"{pools.states} states, or both in one memory of these bytes"
    )


def never_run() -> str:
    """What nobody has tried."""
    return (
        "NOT RUN ON A GPU by those who wrote it: with --model-path this demo was tried on a tiny "
        "model on a CPU alone."
    )


def compared(plan: Plan, workload: str, measures: Mapping[str, Measures]) -> Comparison:
    """What was measured on a workload, under its title."""
    return Comparison(workload, title(plan, workload), dict(measures), exact=workload == "chat")


def title(plan: Plan, workload: str) -> str:
    """The workload's name in tables and the picture."""
    return (
        f"{plan.clients.clients} clients in a queue" if workload == "clients" else NAMES[workload]
    )


def report(
    plan: Plan, comparisons: Sequence[Comparison], cost: ModelCost, load: ForeignLoad
) -> str:
    """Tables, what the figures are worth, and at the end who won."""
    tables = "\n\n".join(
        f"{table(comparison)}\n\n{about(plan, comparison.workload)}" for comparison in comparisons
    )
    verdicts = "\n".join(verdict(comparison, load.is_busy) for comparison in comparisons)
    return f"{tables}\n\n{caveats(plan, cost)}\n{load}\n\n{verdicts}\n"


def caveats(plan: Plan, cost: ModelCost) -> str:
    """What the figures are, and are not."""
    if plan.side_by_side:
        what = (
            "TTFT and rates are those of a tiny random model on this CPU and say little about a "
            "GPU. Hits and FLOPs saved follow from the order of the requests: in the chat exactly, "
            "elsewhere up to how requests overlap."
        )
    else:
        what = f"{never_run()} The machine may have changed from one server to the next."
    weight = "tuned by the server" if plan.eff_weight == "auto" else plan.eff_weight
    paper = f" The paper: policy 2, weight {weight}." if PAPER in plan.servers else ""
    return (
        f"{what} FLOPs are counted by the client with one cost model for all. Every server has "
        f"{memory(plan, cost)}.{paper} One seed ({plan.seed}), one size of memory: others may turn "
        "out the other way."
    )


def save(
    plan: Plan,
    comparisons: Sequence[Comparison],
    cost: ModelCost,
    load: ForeignLoad,
    text: str,
    command: str,
    out: Path,
) -> tuple[Path, ...]:
    """Write results.json, table.md and the picture; returns their paths."""
    results, markdown = out / "results.json", out / "table.md"
    png, svg = out / "comparison.png", out / "comparison.svg"
    found: list[dict[str, Any]] = []
    for comparison in comparisons:
        for row in rows(comparison, shared_by_rows(plan, cost, load, command)):
            row["server_flags"] = shlex.join(plan.server_flags()[row["server"]])
            found.append(row)
    results.write_text(json.dumps(found, indent=1) + "\n")
    markdown.write_text(text)
    draw(comparisons, caption(plan, load), png, svg)
    return results, markdown, png, svg


def shared_by_rows(plan: Plan, cost: ModelCost, load: ForeignLoad, command: str) -> dict[str, Any]:
    """What every row says beside its figures: how it was made, on what."""
    return {
        "benchmark": "demo",
        "command": command,
        "model": Path(plan.model).name if plan.side_by_side else plan.model,
        "memory_bytes": plan.memory_bytes(cost),
        **asdict(plan.pools),
        "seed": plan.seed,
        "scale": plan.scale,
        "rounds": plan.rounds,
        "foreign_cores": round(load.cores, 2),
        "sglang": version("sglang"),
        "sglang_marconi": version("sglang-marconi"),
    }


def caption(plan: Plan, load: ForeignLoad) -> str:
    """The two lines under the picture."""
    model = "Tiny random Qwen3-Next on a CPU" if plan.side_by_side else plan.model
    return (
        f"{model}; every server has the bytes of {plan.pools.kv_tokens:,} KV tokens and "
        f"{plan.pools.states} states; seed {plan.seed}.\n{load}"
    )


@contextmanager
def _started(
    plan: Plan, flags: Mapping[str, Sequence[str]], out: Path
) -> Iterator[dict[str, Server]]:
    with tqdm(total=len(flags), desc="starting servers", unit="server") as bar:
        running = launch_servers(
            Path(plan.model),
            flags,
            out,
            port=plan.port,
            on_ready=lambda _: bar.update(),
            start_seconds=plan.start_seconds,
        )
        with running as servers:
            bar.close()
            yield servers


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
