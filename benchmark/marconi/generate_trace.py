"""Writes a trace made by code, the same for the same arguments.

    python benchmark/marconi/generate_trace.py OUT --mix chat=3,agent=1,noise=2 --sessions 500

Shapes: shared-prefix (SGLang's generated-shared-prefix), few-shot, chat (lengths fitted to
ShareGPT), agent (append-only), eliding-agent (old observations are dropped) and noise (one-off
requests). Sessions start as a Poisson process, of one rate or of two in turn; users type, and
answers take their time, by the paper's rules. OUT is compressed as its name ends (.xz, .gz, .zst).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from traces import Timing
from traces.generator import Sizes, generate, parse_mix
from traces.writers import WriterOptions, write_trace

DEFAULT_MIX = "shared-prefix=2,few-shot=2,chat=3,agent=1,eliding-agent=1,noise=4"
_TIMES = ("sessions_per_second", "words_per_minute", "response_seconds")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the trace, and say on stderr how many requests it has."""
    options = parse_arguments(argv)
    try:
        timing = Timing(
            **{name: getattr(options, name) for name in _TIMES},
            quiet_sessions_per_second=options.quiet_sessions_per_second,
            shift_after=options.shift_after,
            seed=options.seed,
        )
        sizes = Sizes(**{size.name: getattr(options, size.name) for size in fields(Sizes)})
        if options.sessions < 1 or options.block < 1:
            raise ValueError("--sessions and --block must be 1 or more")
        requests = generate(
            parse_mix(options.mix),
            sessions=options.sessions,
            sizes=sizes,
            timing=timing,
            block=options.block,
            keep_tokens=options.to == "marconi",
        )
        count = write_trace(requests, options.path, options.to, WriterOptions(options.block))
    except (ValueError, OSError) as error:
        sys.exit(f"generate_trace.py: {error}")
    print(f"{count} requests of {options.sessions} sessions", file=sys.stderr)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, metavar="OUT")
    parser.add_argument("--to", choices=["blocks", "marconi"], default="blocks")
    parser.add_argument("--mix", default=DEFAULT_MIX, help="shapes and shares (%(default)s)")
    parser.add_argument("--sessions", type=int, default=500, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (%(default)s)")
    parser.add_argument("--block", type=int, default=64, help="tokens of a block (%(default)s)")
    times = parser.add_argument_group("times")
    for name in _TIMES:
        flag = f"--{name.replace('_', '-')}"
        times.add_argument(flag, type=float, default=getattr(Timing, name), help="(%(default)s)")
    times.add_argument(
        "--quiet-sessions-per-second",
        type=float,
        help="rate of every second block of --shift-after sessions (by default there is one rate)",
    )
    times.add_argument(
        "--shift-after",
        type=int,
        default=Timing.shift_after,
        help="sessions of a block (%(default)s)",
    )
    sizes = parser.add_argument_group("sizes, in tokens or counts")
    for size in fields(Sizes):
        flag = f"--{size.name}"
        sizes.add_argument(flag, type=int, default=size.default, help="(%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
