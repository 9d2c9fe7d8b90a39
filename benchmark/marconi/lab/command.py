"""What would a policy have saved on a trace with this much memory? Asked of the product's cache.

    python benchmark/marconi/simulate.py --trace FILE... --policy lru,server:2:0.5,clairvoyant \\
        --model Qwen3-Next-80B-A3B-Instruct --memory-gib 13

One JSON row a run. Sizes: --kv-tokens with --state-slots, --memory-gib (any number of them), or
--capacity starved,middle,ample, found for each trace by stock LRU's own result, or infinite. With
--out a sweep that was interrupted goes on where it stopped. --base 0.5.4 asks the cache of that
release, in the environment that `make setup-fork` makes. --engine paper simulates the paper's world
instead: one byte budget, policies vllm+, sglang+, marconi, marconi:ALPHA.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from policies import policy_help
from sglang.srt.mem_cache.marconi.advice.load.schedules import SCHEDULES
from sglang.srt.mem_cache.marconi.advice.load.service import ServiceTimes
from sglang.srt.mem_cache.marconi.tuning.hosted_cache import WRITE_POLICIES
from traces import read_trace
from traces.fields import UNITS

from lab.bases import BASES, enter
from lab.capacity import CAPACITIES, INFINITE, with_capacities
from lab.costs import DEFAULT_RATIO
from lab.hints import TRACE
from lab.run import check_spec
from lab.spec import DEFAULT_BASE, HostSpec, RunSpec, with_memory
from lab.sweep import BACKENDS, connect, sweep

#: What a person types, and what another interpreter is started with.
COMMAND = Path(__file__).resolve().parents[1] / "simulate.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rows; 1 where a run failed.

    Where another interpreter has the base, the process becomes that one.
    """
    options = parse_arguments(argv)
    try:
        enter(BASES[options.base], [str(COMMAND), *(sys.argv[1:] if argv is None else argv)])
        specs = list(plan(options))
        for spec in specs:
            check_spec(spec)
        connect(options.backend, options.cluster)
    except (ValueError, KeyError, OSError) as error:
        sys.exit(f"simulate.py: {error}")
    finished = 0
    for row in sweep(specs, jobs=options.jobs, backend=options.backend, out=options.out):
        print(json.dumps(row), flush=True)
        finished += 1
    return int(finished < len({spec.key() for spec in specs}))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="policies:\n" + policy_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--trace", nargs="+", required=True, help="files, see README for formats")
    what.add_argument("--format", default="auto", help="of the traces; by default found out")
    what.add_argument("--block", type=int, help="tokens a block; default: the format's own")
    what.add_argument("--tokenizer", help="of Hugging Face, for traces that hold text")
    what.add_argument("--time-unit", choices=UNITS, help="of its times; default: the format's")
    what.add_argument(
        "--errors", choices=("skip", "fail"), default="skip", help="what a corrupt line does"
    )
    what.add_argument("--limit", type=int, help="only so many requests")
    what.add_argument(
        "--measure-from",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="the whole trace is served, requests from this share of it on are counted",
    )
    what.add_argument("--policy", default="lru,server:2", help="comma-separated, see below")
    what.add_argument("--model", required=True, help="a known name, or a config.json")
    what.add_argument("--engine", choices=("sglang", "shadow", "paper"), default="sglang")
    what.add_argument(
        "--base", choices=tuple(BASES), default=DEFAULT_BASE, help="release of SGLang to drive"
    )
    what.add_argument("--paper-mode", choices=("corrected", "as_published"), default="corrected")
    what.add_argument(
        "--ledger",
        action="store_true",
        help="let the shadow find token_hit_rate_bound too; the cache that serves always does",
    )
    what.add_argument(
        "--hints",
        default=TRACE,
        help="what clients say of what follows: trace (its own), none, true, wrong:SHARE[:SEED]",
    )
    what.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")

    memory = parser.add_argument_group("memory")
    memory.add_argument("--kv-tokens", type=int, help="KV pool, in tokens")
    memory.add_argument("--state-slots", type=int, help="state pool, in states")
    memory.add_argument("--memory-gib", help="both pools together, in GiB; comma-separated")
    memory.add_argument(
        "--capacity", help=f"of {', '.join((*CAPACITIES, INFINITE))}; comma-separated"
    )
    memory.add_argument(
        "--capacity-engine",
        choices=("sglang", "shadow"),
        default="sglang",
        help="whose LRU the capacities are of; the shadow's are found some ten times faster",
    )
    memory.add_argument("--mamba-full-memory-ratio", type=float, default=DEFAULT_RATIO)
    memory.add_argument(
        "--memory",
        choices=("static", "elastic"),
        default="static",
        help="a pool each for KV and states, or one for both, as --enable-unified-memory",
    )

    memory.add_argument(
        "--host-share",
        type=float,
        metavar="TIMES",
        help="memory of the host below it, in multiples of the device's, as --hicache-ratio",
    )
    memory.add_argument(
        "--host-write-policy",
        choices=tuple(WRITE_POLICIES),
        default="write_through",
        help="as --hicache-write-policy",
    )
    memory.add_argument("--host-gbps", type=float, default=50.0, help="GB/s to the device")

    server = parser.add_argument_group("the simulated server")
    server.add_argument("--admission", default="sglang", help="which states enter the cache")
    server.add_argument(
        "--running",
        "--concurrency",
        dest="concurrency",
        type=int,
        help="requests that run at a time; the others wait. Default: one after another, no clock",
    )
    server.add_argument(
        "--arrivals",
        choices=("trace", "closed"),
        default="trace",
        help="by the trace's clock, or by sessions that send the next request after an answer",
    )
    server.add_argument("--active", type=int, help="sessions at a time, with --arrivals closed")
    server.add_argument(
        "--think",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="mean from an answer to the next request, with --arrivals closed",
    )
    server.add_argument(
        "--schedule", choices=tuple(SCHEDULES), default="fcfs", help="who waits goes in this order"
    )
    server.add_argument("--speed", type=float, default=1.0, help="the trace's clock runs faster")
    server.add_argument("--prefill-tflops", type=float, default=400.0, help="TFLOP/s sustained")
    server.add_argument("--prefill-ms", type=float, default=0.0, help="more for each prefill batch")
    server.add_argument(
        "--attention-time",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="seconds that a FLOP of attention takes, to one of other layers",
    )
    server.add_argument("--decode-ms-per-token", type=float, default=20.0)

    runs = parser.add_argument_group("how to run")
    runs.add_argument("--jobs", type=int, default=1, help="runs at a time; -1: one a core")
    runs.add_argument("--backend", choices=BACKENDS, default="loky", help="of joblib")
    runs.add_argument("--cluster", help="address of a Dask or Ray cluster; default: a local one")
    runs.add_argument("--out", type=Path, help="append rows to this file, skip those it has")
    runs.add_argument("--cache", type=Path, default=Path(".cache/lab"), help="found capacities")
    return parser.parse_args(argv)


def plan(options: argparse.Namespace) -> Iterator[RunSpec]:
    """The runs that the options ask for, trace by trace.

    Raises:
        ValueError: options that are missing or contradict each other.
    """
    active = _active(options)
    _check_positive("--attention-time", options.attention_time)
    for trace in options.trace:
        base = RunSpec(
            trace=trace,
            policy="",
            model=options.model,
            kv_tokens=0,
            state_slots=0,
            engine=options.engine,
            format=options.format,
            block=_block(trace, options),
            tokenizer=options.tokenizer,
            errors=options.errors,
            admission=options.admission,
            concurrency=options.concurrency,
            service=ServiceTimes(
                options.prefill_tflops * 1e12,
                options.decode_ms_per_token / 1000,
                options.speed,
                options.prefill_ms / 1000,
                options.attention_time,
            ),
            active=active,
            think_seconds=options.think,
            schedule=options.schedule,
            limit=options.limit,
            paper_mode=options.paper_mode,
            labels=dict(map(_label, options.label)),
            memory=options.memory,
            base=options.base,
            measure_from=options.measure_from,
            time_unit=options.time_unit,
            hints=options.hints,
            host=_host(options),
            ledger=options.engine != "shadow" or options.ledger,
        )
        for sized in _sizes(base, options):
            for policy in options.policy.split(","):
                yield replace(sized, policy=policy)


def _host(options: argparse.Namespace) -> HostSpec | None:
    if options.host_share is None:
        return None
    _check_positive("--host-share", options.host_share)
    _check_positive("--host-gbps", options.host_gbps)
    return HostSpec(options.host_share, options.host_write_policy, options.host_gbps * 1e9)


def _check_positive(flag: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{flag} is {value}; allowed are finite numbers above 0")


def _active(options: argparse.Namespace) -> int | None:
    closed = options.arrivals == "closed"
    if closed and (options.active is None or options.active < 1):
        raise ValueError(
            f"--active is {options.active} but --arrivals is closed; allowed is 1 or more"
        )
    if not closed and (options.active is not None or options.think):
        raise ValueError(
            f"--active is {options.active} and --think {options.think:g} but --arrivals is trace; "
            f"allowed with them is --arrivals closed"
        )
    if options.think < 0:
        raise ValueError(f"--think is {options.think:g}; allowed is 0 or more")
    if options.concurrency is None and (closed or options.schedule != "fcfs"):
        raise ValueError(
            f"--arrivals is {options.arrivals} and --schedule {options.schedule} but --running is "
            f"not given; allowed with them is 1 or more"
        )
    return options.active if closed else None


def _block(trace: str, options: argparse.Namespace) -> int:
    reader = read_trace(
        Path(trace), format=options.format, block=options.block, tokenizer=options.tokenizer
    )
    return reader.block


def _sizes(base: RunSpec, options: argparse.Namespace) -> Iterator[RunSpec]:
    ratio = options.mamba_full_memory_ratio
    pools = (options.kv_tokens, options.state_slots)
    given = (options.memory_gib, options.capacity, None if pools == (None, None) else pools)
    if sum(option is not None for option in given) != 1 or None in (given[2] or ()):
        raise ValueError(
            "allowed is one of --memory-gib, --capacity, or --kv-tokens with --state-slots; "
            f"given are {', '.join(map(str, given))}"
        )
    if options.memory_gib is not None:
        for gib in options.memory_gib.split(","):
            yield with_memory(base, float(gib), ratio)
    elif options.capacity is not None:
        names = options.capacity.split(",")
        allowed = (*CAPACITIES, INFINITE)
        unknown = sorted(set(names) - set(allowed))
        if unknown:
            raise ValueError(f"--capacity is {unknown[0]!r}; allowed are {', '.join(allowed)}")
        yield from with_capacities(base, names, options.cache, ratio, options.capacity_engine)
    else:
        yield replace(base, kv_tokens=options.kv_tokens, state_slots=options.state_slots)


def _label(text: str) -> tuple[str, str | float]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"--label is {text!r}; allowed is KEY=VALUE")
    try:
        return key, float(value)
    except ValueError:
        return key, value


if __name__ == "__main__":
    sys.exit(main())
