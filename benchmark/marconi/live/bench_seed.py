"""No prefix cache, LRU and Marconi on SGLang's own ``generated-shared-prefix`` benchmark.

On a machine with GPUs, as it is:

    python benchmark/marconi/bench_seed.py --model Qwen/Qwen3-Next-80B-A3B-Instruct --tp 4 --out DIR

On a CPU, with a tiny model (``python -m sglang_cpu_reference.tiny_models``):

    python benchmark/marconi/bench_seed.py --small --model TINY --out DIR

What follows a lone ``--`` is passed to every server. Servers run one after another. Ends with a
table, and with results.json, bench_serving's own files and all logs in the output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demonstration.served import Run
from demonstration.shared_prefix import SharedPrefix, run_shared_prefix

from live.rows import counted_between, milliseconds, table
from live.server_api import ServerUnreachable, flush_cache, marconi_counters
from live.servers import Pools, ServerFailed, launch_servers

SMALL_SERVER = (
    *("--mamba-radix-cache-strategy", "extra_buffer", "--context-length", "8192"),
    *Pools(8192, 24, running=4).arguments(),
)
SMALL_SHAPE = {
    "groups": 8,
    "prompts_per_group": 6,
    "prefix_length": 768,
    "question_length": 96,
    "output_length": 16,
    "concurrency": 2,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run all; 0 when every server was measured, 1 when one could not be."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    options = parse_arguments(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.model.exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "0")
    try:
        rows = [
            measure(name, (*flags, *common_flags(options)), options)
            for name, flags in server_flags(options.eff_weight).items()
        ]
    except (ServerFailed, ServerUnreachable, RuntimeError, OSError) as error:
        print(f"bench_seed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; no server is left running.", file=sys.stderr)
        return 130
    results = options.out / "results.json"
    results.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))
    print(f"\nRatios are to the server without a prefix cache. Saved: {results}")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a folder, or a name on the hub")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel size")
    parser.add_argument("--eff-weight", type=float, default=0.5, help="Marconi's alpha")
    parser.add_argument(
        "--small", action="store_true", help="pools and prompts for a tiny model on a CPU"
    )
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--prompts-per-group", type=int, default=16)
    parser.add_argument("--prefix-length", type=int, default=2048)
    parser.add_argument("--question-length", type=int, default=128)
    parser.add_argument("--output-length", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0, help="the servers' port (default: a free)")
    parser.add_argument("--start-seconds", type=float, default=3600.0, help="a server may take")
    parser.add_argument("--run-seconds", type=float, default=7200.0, help="a benchmark may take")
    if "--small" in words[:cut]:
        parser.set_defaults(**SMALL_SHAPE)
    options = parser.parse_args(words[:cut])
    options.server_arguments = tuple(words[cut + 1 :])
    return options


def server_flags(eff_weight: float) -> dict[str, tuple[str, ...]]:
    """What tells the three servers apart."""
    weight = ("--marconi-eff-weight", str(eff_weight))
    return {
        "no radix cache": ("--disable-radix-cache",),
        "LRU": (),
        "Marconi": ("--marconi-evict-policy", "2", *weight),
    }


def common_flags(options: argparse.Namespace) -> tuple[str, ...]:
    """What all three have in common."""
    small = SMALL_SERVER if options.small else ()
    return ("--tp", str(options.tp), *small, *options.server_arguments)


def measure(name: str, flags: tuple[str, ...], options: argparse.Namespace) -> dict[str, Any]:
    """Start one server, run the benchmark against it, and sum up."""
    print(f"{name}: starting a server with {' '.join(flags)}", file=sys.stderr)
    shape = SharedPrefix(
        groups=options.groups,
        prompts_per_group=options.prompts_per_group,
        prefix_length=options.prefix_length,
        question_length=options.question_length,
        output_length=options.output_length,
        concurrency=options.concurrency,
        seed=options.seed,
        **({} if options.small else {"output_token": None}),
    )
    slug = name.lower().replace(" ", "-")
    running = launch_servers(
        options.model,
        {slug: flags},
        options.out,
        port=options.port,
        start_seconds=options.start_seconds,
    )
    with running as servers:
        url = servers[slug].base_url
        flush_cache(url)
        before = marconi_counters(url)
        output = options.out / f"bench-serving-{slug}.jsonl"
        run = run_shared_prefix(shape, options.model, url, output, options.run_seconds)
        counted = counted_between(before, marconi_counters(url))
    return {"server": name, "arguments": list(flags), **figures(run), "marconi": counted}


def figures(run: Run) -> dict[str, Any]:
    """The row of one run; latencies in milliseconds, rates a second of the run."""
    asked = sum(one.prompt_tokens for one in run.served)
    said = sum(one.output_tokens for one in run.served)
    count = len(run.served)
    return {
        "answered": count,
        "input_tokens": asked,
        "output_tokens": said,
        "token_hit_rate": sum(one.cached_tokens for one in run.served) / asked,
        "request_hit_rate": sum(one.cached_tokens > 0 for one in run.served) / count,
        "ttft_ms": milliseconds([one.ttft for one in run.served]),
        "seconds": run.seconds,
        "requests_per_s": count / run.seconds,
        "input_tokens_per_s": asked / run.seconds,
        "output_tokens_per_s": said / run.seconds,
    }


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
