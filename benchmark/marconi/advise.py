"""Which split of memory, policy, admission and path cap would have saved most FLOPs on a trace?

    python benchmark/marconi/advise.py --trace FILE --model NAME --memory-gib 40

As ``sglang-marconi advise``, for traces of every format that the lab reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.costs import load_cost
from lab.shadow_world import hashed_requests
from sglang.srt.mem_cache.marconi.advice.command import add_arguments, advised
from traces import read_trace
from traces.fields import UNITS


def main(argv: Sequence[str] | None = None) -> int:
    """Print the curve and the command."""
    options = parse_arguments(argv)
    try:
        reader = read_trace(
            Path(options.trace),
            format=options.format,
            block=options.block,
            limit=options.limit,
            tokenizer=options.tokenizer,
            time_unit=options.time_unit,
            empty="fail",
        )
        requests = list(hashed_requests(reader, reader.block))
        print(advised(options, requests, reader.block, load_cost(options.model)))
    except (ValueError, KeyError, OSError) as error:
        sys.exit(f"advise.py: {error}")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", required=True, help="a file, see README for formats")
    parser.add_argument("--format", default="auto", help="of the trace; by default found out")
    parser.add_argument("--block", type=int, help="tokens a block; default: the format's own")
    parser.add_argument("--tokenizer", help="of Hugging Face, for traces that hold text")
    parser.add_argument("--time-unit", choices=UNITS, help="of its times; default: the format's")
    parser.add_argument("--limit", type=int, help="only so many requests")
    add_arguments(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
