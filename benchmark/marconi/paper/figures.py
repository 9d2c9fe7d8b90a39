"""The runs behind the analogues of the paper's figures 7 to 13, over generated traces.

    python benchmark/marconi/paper_figures.py --out DIR [--quick] [--jobs N]

Each sweep is one call of ``simulate.py``; its rows go to ``DIR/results.jsonl``, and a sweep whose
rows are there already is not run again. At the end ``figures.py`` draws them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import figures
from lab import command as simulate
from sglang.srt.marconi_utils import PAPER_7B, PAPER_7B_NAME, SeedCost

#: Layers, state space : attention, of 36 blocks that mix tokens. A model without any state needs
#: no state pool and is left to caches of attention models.
COMPOSITIONS = ((32, 4), (30, 5), (28, 7), (24, 12))
STATE_DIMS = (16, 32, 64, 128)
ARRIVAL_RATES = (0.5, 1.0, 2.0)
THINK_SECONDS = (5.0, 7.5, 10.0)
CHAT, AGENT = "chat", "eliding-agent"
#: Sizes of the cache by shape, from scarce to ample for the default number of sessions.
MEMORY_GIB = {CHAT: (0.5, 1.0, 2.0, 4.0), AGENT: (4.0, 8.0, 16.0, 32.0)}
#: Requests at a time in the runs whose times are modelled.
CONCURRENCY = 8
POLICIES = {
    "paper": "vllm+,sglang+,marconi",
    "sglang": "lru,marconi:0.5,marconi-state:0.5",
}


@dataclass(frozen=True)
class Arrivals:
    """How the sessions of a generated trace come; rates per second, seconds between requests."""

    sessions_per_second: float = 1.0
    response_seconds: float = 7.5
    sessions: int = 24


@dataclass(frozen=True)
class Sweep:
    """One call of the simulator: some policies over some sizes of memory, all else fixed."""

    shape: str
    engine: str
    memory_gib: tuple[float, ...]
    arrivals: Arrivals = Arrivals()
    model: SeedCost = PAPER_7B
    concurrency: int | None = None
    labels: Mapping[str, str | float] = field(default_factory=dict)


V = TypeVar("V")
Generate = Callable[[str, Arrivals, int, Path], None]
Simulate = Callable[[Sequence[str]], int | None]

#: What a person types.
COMMANDS = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_arguments(argv)
    failed = run(options)
    figures.main([str(options.out / "results.jsonl"), "--out", str(options.out)])
    if failed:
        sys.exit(f"{len(failed)} sweeps failed: {'; '.join(failed)}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="traces, rows, figures, report")
    parser.add_argument("--quick", action="store_true", help="few sessions, few points")
    parser.add_argument("--seed", type=int, default=0, help="of the traces (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    return parser.parse_args(argv)


def generate(shape: str, arrivals: Arrivals, seed: int, out: Path) -> None:
    """Write the trace of one shape of session; the same arguments give the same trace."""
    command = [sys.executable, str(COMMANDS / "generate_trace.py"), str(out)]
    command += ["--mix", f"{shape}=1", "--seed", str(seed), "--sessions", str(arrivals.sessions)]
    command += ["--sessions-per-second", str(arrivals.sessions_per_second)]
    command += ["--response-seconds", str(arrivals.response_seconds)]
    subprocess.run(command, check=True)


def run(
    options: argparse.Namespace,
    make_trace: Generate = generate,
    run_simulator: Simulate = simulate.main,
) -> list[str]:
    """Run all sweeps; returns what failed, which does not stop the others."""
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for sweep in sweeps(quick=options.quick):
        trace = options.out / f"{trace_name(sweep)}-seed{options.seed}.jsonl"
        if not trace.exists():
            make_trace(sweep.shape, sweep.arrivals, options.seed, trace)
        command = arguments(sweep, trace, options.out, options.jobs)
        try:
            code: object = run_simulator(command)
        except SystemExit as stop:
            code = stop.code
        if code:
            failed.append(f"simulate.py {' '.join(command)}: {code}")
    return failed


def sweeps(*, quick: bool) -> Iterator[Sweep]:
    """All sweeps; ``quick`` takes fewer sessions and only the ends of each range."""
    arrivals = Arrivals(sessions=6) if quick else Arrivals()

    def some(values: tuple[V, ...]) -> tuple[V, ...]:
        return (values[0], values[-1]) if quick else values

    for engine in POLICIES:
        for shape in (CHAT, AGENT):
            sizes = MEMORY_GIB[shape][:3] if quick else MEMORY_GIB[shape]
            yield Sweep(shape, engine, sizes, arrivals)
            if engine == "sglang":
                yield Sweep(shape, engine, some(sizes), arrivals, concurrency=CONCURRENCY)
        memory = (MEMORY_GIB[AGENT][1],)
        for state, attention in some(COMPOSITIONS):
            model = SeedCost(state, attention, PAPER_7B.num_mlp_layers, PAPER_7B.d, PAPER_7B.n)
            labels = {"layer_composition": f"{state}:{attention}"}
            yield Sweep(AGENT, engine, memory, arrivals, model, labels=labels)
        for state_dim in some(STATE_DIMS):
            model = SeedCost(24, 4, 28, PAPER_7B.d, state_dim)
            yield Sweep(AGENT, engine, memory, arrivals, model, labels={"state_dim": state_dim})
        for rate in some(ARRIVAL_RATES):
            times = Arrivals(rate, arrivals.response_seconds, arrivals.sessions)
            yield Sweep(AGENT, engine, memory, times, labels={"arrival_rate": rate})
        for seconds in some(THINK_SECONDS):
            times = Arrivals(arrivals.sessions_per_second, seconds, arrivals.sessions)
            yield Sweep(AGENT, engine, memory, times, labels={"think_time": seconds})


def trace_name(sweep: Sweep) -> str:
    """A name that tells the traces of different arrivals apart."""
    times = sweep.arrivals
    return (
        f"{sweep.shape}-{times.sessions}x{times.sessions_per_second:g}-{times.response_seconds:g}s"
    )


def arguments(sweep: Sweep, trace: Path, folder: Path, jobs: int) -> list[str]:
    """The simulator's command line for a sweep; writes the model's shape where it is not known."""
    command = ["--trace", str(trace), "--engine", sweep.engine, "--policy", POLICIES[sweep.engine]]
    command += ["--model", _model(sweep.model, folder)]
    command += ["--memory-gib", ",".join(f"{size:g}" for size in sweep.memory_gib)]
    if sweep.concurrency is not None:
        command += ["--concurrency", str(sweep.concurrency)]
    for name, value in {"shape": sweep.shape, **sweep.labels}.items():
        command += ["--label", f"{name}={value}"]
    return [*command, "--jobs", str(jobs), "--out", str(folder / "results.jsonl")]


def _model(model: SeedCost, folder: Path) -> str:
    if model == PAPER_7B:
        return PAPER_7B_NAME
    name = f"ssm{model.num_ssm_layers}-attn{model.num_attn_layers}-n{model.n}.json"
    path = folder / name
    path.write_text(json.dumps(asdict(model)))
    return str(path)


if __name__ == "__main__":
    main()
