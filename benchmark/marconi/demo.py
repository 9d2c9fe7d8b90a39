"""Serves the same requests with stock LRU and with Marconi, and prints and draws the comparison.

    python benchmark/marconi/demo.py --models DIR --out DIR

Real SGLang servers stand side by side: stock, Marconi, and a third one with policy 1, which picks
stock LRU's victims and, unlike stock, counts them. Two workloads: a seeded multi-turn chat and
SGLang's own bench_serving on prompts with shared prefixes. Nothing outside the repository's set-up
is needed. It ends with one table a workload, with what Marconi wins and loses, and with
results.json, table.md, comparison.png and comparison.svg in the output directory.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chat_workload import SCALE, Session, make_sessions, repeated_fraction, working_set
from demo_chat import Served, run_chat, warm_up
from demo_figure import draw
from demo_measures import (
    difference_of_runs,
    measure,
    paired_difference,
    victims_since,
)
from demo_report import LRU, MARCONI, TITLES, WITNESS, Comparison, table, verdict, witness_note
from demo_servers import Pools, Server, ServerFailed, launch_servers
from demo_shared_prefix import BenchRun, SharedPrefix, run_shared_prefix
from sglang.srt.marconi_utils import ModelCost, cost_from_config
from tqdm import tqdm

CONTEXT_LENGTH = 8192
# --sleep-on-idle: a server that waits must not spin on the CPU that another one is timed on.
COMMON_FLAGS = (
    *("--mamba-radix-cache-strategy", "extra_buffer", "--context-length", str(CONTEXT_LENGTH)),
    *("--sleep-on-idle", "--log-level", "warning"),
)
ARCHITECTURE = "Qwen3NextForCausalLM"


@dataclass(frozen=True)
class Plan:
    """What one run of the demo does; every knob of it."""

    seed: int
    sessions: int
    pools: Pools
    eff_weight: float
    shared_prefix: SharedPrefix
    rounds: int


def server_flags(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The command-line flags of each server."""
    common = (*COMMON_FLAGS, *plan.pools.arguments())
    weight = ("--marconi-eff-weight", str(plan.eff_weight))
    return {
        LRU: common,
        WITNESS: (*common, "--marconi-evict-policy", "1"),
        MARCONI: (*common, "--marconi-evict-policy", "2", *weight),
    }


def find_model(models: Path) -> Path:
    """The tiny Qwen3-Next in ``models``, or in one of its folders.

    Raises:
        FileNotFoundError: if there is none.
    """
    for config in (models / "config.json", *sorted(models.glob("*/config.json"))):
        if config.is_file() and ARCHITECTURE in json.loads(config.read_text())["architectures"]:
            return config.parent
    raise FileNotFoundError(
        f"no {ARCHITECTURE} in {models}; make one with: "
        f"python -m sglang_cpu_reference.tiny_models {models} --model qwen3-next"
    )


def model_cost(model: Path) -> ModelCost:
    """What this model's tokens cost to prefill, from its config.json."""
    return cost_from_config(json.loads((model / "config.json").read_text()))


def compare_chat(
    sessions: Sequence[Session], servers: Mapping[str, Server], cost: ModelCost
) -> Comparison:
    """Serve the chat on all servers, request by request."""
    total = sum(len(session.turns) for session in sessions)
    for server in servers.values():
        warm_up(server.base_url)
        server.flush_cache()
    before = _counters(servers)
    with tqdm(total=total, desc="multi-turn chat, one request at a time", unit="turn") as bar:
        urls = {name: server.base_url for name, server in servers.items()}
        served = run_chat(urls, sessions, on_request=bar.update)
    after = _counters(servers)
    measures = {
        name: measure(
            served[name],
            sum(request.seconds for request in served[name]),
            cost.flops,
            victims_since(before[name], after[name]),
        )
        for name in servers
    }
    ttfts = {name: [1000 * request.ttft for request in served[name]] for name in servers}
    difference = paired_difference(ttfts[MARCONI], ttfts[LRU])
    return Comparison("Multi-turn chat", measures, difference)


def compare_shared_prefix(
    plan: Plan, model: Path, servers: Mapping[str, Server], cost: ModelCost, out: Path
) -> Comparison:
    """Run bench_serving against one server after the other, in turn forwards and backwards."""
    runs: dict[str, list[BenchRun]] = {name: [] for name in servers}
    before = _counters(servers)
    turns = list(there_and_back(list(servers), plan.rounds))
    with tqdm(total=len(turns), unit="run") as bar:
        for index, name in enumerate(turns):
            bar.set_description(f"bench_serving generated-shared-prefix: {TITLES[name]}")
            servers[name].flush_cache()
            output = out / f"bench-serving-{index + 1}-{name}.jsonl"
            run = run_shared_prefix(plan.shared_prefix, model, servers[name].base_url, output)
            runs[name].append(run)
            bar.update()
    after = _counters(servers)
    served = {name: [r for run in runs[name] for r in run.served] for name in servers}
    measures = {
        name: measure(
            served[name],
            sum(run.seconds for run in runs[name]),
            cost.flops,
            victims_since(before[name], after[name]),
        )
        for name in servers
    }
    means = {name: [1000 * _mean_ttft(run.served) for run in runs[name]] for name in servers}
    difference = difference_of_runs(means[MARCONI], means[LRU])
    return Comparison("generated-shared-prefix", measures, difference, plan.rounds)


def there_and_back(names: Sequence[str], rounds: int) -> Iterator[str]:
    """A B C, C B A, A B C, ...: no server always comes first, while the machine warms up."""
    for index in range(rounds):
        yield from names if index % 2 == 0 else reversed(names)


def run(plan: Plan, model: Path, out: Path, port: int) -> None:
    """Start the servers, serve both workloads, and report."""
    started = time.monotonic()
    cost = model_cost(model)
    sessions = make_sessions(plan.sessions, plan.seed)
    print(introduction(plan, sessions), file=sys.stderr)
    flags = server_flags(plan)
    with tqdm(total=len(flags), desc="starting servers (about a minute)", unit="server") as bar:
        running = launch_servers(model, flags, out, port=port, on_ready=lambda _: bar.update())
        with running as servers:
            bar.close()
            comparisons = [
                compare_chat(sessions, servers, cost),
                compare_shared_prefix(plan, model, servers, cost, out),
            ]
    text = "\n\n".join(
        part for comparison in comparisons for part in (table(comparison), _remarks(comparison))
    )
    text = f"{text}\n\n{caveats(plan)}\n"
    paths = save(plan, sessions, comparisons, text, out)
    print(f"\n{text}")
    print(f"Measured in {(time.monotonic() - started) / 60:.1f} minutes. Saved:")
    for path in paths:
        print(f"  {path}")


def introduction(plan: Plan, sessions: Sequence[Session]) -> str:
    """What is about to happen, and on how much."""
    turns = sum(len(session.turns) for session in sessions)
    shape = plan.shared_prefix
    return (
        f"Three servers (stock LRU, LRU with counters, Marconi), each with {plan.pools.kv_tokens} "
        f"KV tokens and {plan.pools.states} recurrent states.\n"
        f"Chat: {turns} requests of {len(sessions)} sessions, {working_set(sessions)} tokens in "
        f"all, lengths 1/{SCALE} of ShareGPT's.\n"
        f"bench_serving: {shape.requests} requests of {shape.groups} groups, "
        f"{shape.concurrency} at a time, {plan.rounds} time(s) on each server."
    )


def caveats(plan: Plan) -> str:
    """What the figures are, and are not."""
    return (
        "TTFT and throughput are those of a tiny random model on this CPU and say little about a "
        "GPU; hits and FLOPs saved follow from the order of the requests alone (in the chat "
        "exactly, in bench_serving up to how requests overlap). FLOPs are counted by the client "
        f"with one cost model for all. Marconi: policy 2, eff weight {plan.eff_weight}. One seed "
        f"({plan.seed}), one pool size: other sizes and workloads may turn out the other way."
    )


def save(
    plan: Plan,
    sessions: Sequence[Session],
    comparisons: Sequence[Comparison],
    text: str,
    out: Path,
) -> tuple[Path, ...]:
    """Write results.json, table.md and the picture; returns their paths."""
    results, markdown = out / "results.json", out / "table.md"
    png, svg = out / "comparison.png", out / "comparison.svg"
    chat = {
        "requests": sum(len(session.turns) for session in sessions),
        "working_set_tokens": working_set(sessions),
        "repeated_fraction": repeated_fraction(sessions),
    }
    content: dict[str, Any] = {
        "plan": asdict(plan),
        "server_flags": server_flags(plan),
        "chat": chat,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    results.write_text(json.dumps(content, indent=2) + "\n")
    markdown.write_text(text)
    caption = (
        f"Tiny random Qwen3-Next on a CPU, {plan.pools.kv_tokens} KV tokens and "
        f"{plan.pools.states} states; policy 2 with eff weight {plan.eff_weight}; seed {plan.seed}"
    )
    draw(comparisons, caption, png, svg)
    return results, markdown, png, svg


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder with the tiny model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="a few sessions, to see it work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sessions", type=int, help="chat sessions (default 32, quick 6)")
    parser.add_argument("--kv-tokens", type=int, default=8192, help="KV pool, in tokens")
    parser.add_argument("--states", type=int, default=24, help="state pool, in states")
    parser.add_argument("--eff-weight", type=float, default=0.5, help="Marconi's alpha")
    parser.add_argument("--rounds", type=int, help="bench_serving runs a server (default 2)")
    parser.add_argument("--port", type=int, default=0, help="first of three ports (default: free)")
    return parser.parse_args(arguments)


def make_plan(options: argparse.Namespace) -> Plan:
    """The plan that the command line asks for."""
    quick: bool = options.quick
    return Plan(
        seed=options.seed,
        sessions=options.sessions or (6 if quick else 32),
        pools=Pools(options.kv_tokens, options.states, running=4),
        eff_weight=options.eff_weight,
        shared_prefix=SharedPrefix(
            groups=24,
            prompts_per_group=2 if quick else 12,
            prefix_length=768,
            question_length=96,
            output_length=16,
            concurrency=2,
            seed=options.seed,
        ),
        rounds=options.rounds or (1 if quick else 2),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when it measured all, 1 when a server or request failed."""
    # A closed terminal or a kill must stop the servers as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    options = parse_arguments(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        run(make_plan(options), find_model(options.models), options.out, options.port)
    except (ServerFailed, FileNotFoundError, RuntimeError, OSError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; no server is left running.", file=sys.stderr)
        return 130
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _counters(servers: Mapping[str, Server]) -> dict[str, Mapping[str, Any] | None]:
    return {name: server.marconi_counters() for name, server in servers.items()}


def _mean_ttft(served: Sequence[Served]) -> float:
    return sum(request.ttft for request in served) / len(served)


def _remarks(comparison: Comparison) -> str:
    return "\n".join(part for part in (verdict(comparison), witness_note(comparison)) if part)


if __name__ == "__main__":
    sys.exit(main())
