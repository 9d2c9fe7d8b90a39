"""Which split of memory, policy and cap would have saved most FLOPs on a trace?

    python benchmark/marconi/advise.py --trace FILE --model NAME --memory-gib 40

Simulated on block hashes, one request at a time. Prints FLOPs saved by each policy over
``--mamba-full-memory-ratio`` and by elastic memory, and the launch command of the best.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lab.costs import load_cost
from lab.shadow_world import hashed_requests
from sglang.srt.mem_cache.marconi.advice import POLICY_ROWS, RATIOS, Advice, advise
from traces import read_trace


def main(argv: Sequence[str] | None = None) -> int:
    """Print the curve and the command."""
    options = parse_arguments(argv)
    try:
        cost = load_cost(options.model)
        reader = read_trace(
            Path(options.trace),
            format=options.format,
            block=options.block,
            limit=options.limit,
            tokenizer=options.tokenizer,
        )
        requests = list(hashed_requests(reader, reader.block))
        advice = advise(
            requests,
            cost,
            options.memory_gib * 2**30,
            block_tokens=reader.block,
            ratios=options.ratios,
        )
    except (ValueError, KeyError, OSError) as error:
        sys.exit(f"advise.py: {error}")
    if options.json:
        print(json.dumps({**asdict(advice), "command": command(advice, options.model)}))
    else:
        print(table(advice))
        print()
        print(sentence(advice))
        print(command(advice, options.model))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", required=True, help="a file, see README for formats")
    parser.add_argument("--format", default="auto", help="of the trace; by default found out")
    parser.add_argument("--block", type=int, help="tokens a block; default: the format's own")
    parser.add_argument("--tokenizer", help="of Hugging Face, for traces that hold text")
    parser.add_argument("--limit", type=int, help="only so many requests")
    parser.add_argument("--model", required=True, help="a known name, or a config.json")
    parser.add_argument(
        "--memory-gib", type=_gib, required=True, help="what is left for both pools, in GiB"
    )
    parser.add_argument("--ratios", type=_ratios, default=RATIOS, help="comma-separated")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser.parse_args(argv)


def table(advice: Advice) -> str:
    """FLOPs saved, in percent: policies by row, ratios and elastic memory by column."""
    columns = [*(f"{ratio:g}" for ratio in advice.ratios), "elastic"]
    lines = ["FLOPs saved, %, by --mamba-full-memory-ratio"]
    lines.append(f"{'policy':<28}" + "".join(f"{column:>9}" for column in columns))
    for name in POLICY_ROWS:
        cells = [advice.saved.get(f"{name}/{column}") for column in columns]
        lines.append(
            f"{name:<28}"
            + "".join(f"{'-' if cell is None else f'{100 * cell:.1f}':>9}" for cell in cells)
        )
    return "\n".join(lines)


def sentence(advice: Advice) -> str:
    """What is best, and what it is worth beside stock's default."""
    best, stock = 100 * advice.best_saved, 100 * advice.stock_saved
    return (
        f"Best: {advice.policy} with "
        f"ratio {advice.ratio:g}, {best:.1f} % of FLOPs saved over {advice.requests} requests; "
        f"stock LRU at its default ratio saves {stock:.1f} %. "
        f"Elastic memory would save {100 * advice.elastic_saved:.1f} %, once a server offers it."
    )


def command(advice: Advice, model: str) -> str:
    """How to launch it."""
    memory = f"--mamba-full-memory-ratio {advice.ratio:g}"
    flags = POLICY_ROWS[advice.policy].flags
    return f"python3 -m sglang.launch_server --model {model} {memory} {flags}".rstrip()


def _gib(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is a number > 0")
    return value


def _ratios(text: str) -> tuple[float, ...]:
    return tuple(_gib(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
