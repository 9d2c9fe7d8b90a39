"""Writes any trace in another format.

    python benchmark/marconi/convert_trace.py IN OUT --to bench-serving-mooncake

Reads what ``traces`` reads. OUT is compressed as its name ends (.xz, .gz, .zst).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from traces import FORMATS, Timing, read_trace
from traces.chat import load_tokenizer
from traces.fields import UNITS
from traces.writers import WRITERS, WriterOptions, write_trace


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, and say on stderr how much was read and skipped."""
    options = parse_arguments(argv)
    try:
        tokenizer = load_tokenizer(options.tokenizer)
        reader = read_trace(
            options.input,
            format=options.format,
            block=options.block,
            limit=options.limit,
            errors=options.errors,
            tokenizer=tokenizer,
            reveal_outputs=options.reveal_outputs,
            timing=Timing(sessions_per_second=options.sessions_per_second, seed=options.seed),
            time_unit=options.time_unit,
            empty="fail",
        )
        settings = WriterOptions(reader.block, options.vocab_size, tokenizer)
        count = write_trace(reader, options.output, options.to, settings)
    except (ValueError, OSError) as error:
        sys.exit(f"convert_trace.py: {error}")
    print(
        f"{count} requests of format {reader.format}, {reader.skipped} places skipped, "
        f"{reader.out_of_order} out of order",
        file=sys.stderr,
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--to", choices=sorted(WRITERS), required=True)
    parser.add_argument("--format", default="auto", help=f"of IN: auto, {', '.join(FORMATS)}")
    parser.add_argument("--block", type=int, help="tokens of a block (default: the format's)")
    parser.add_argument("--time-unit", choices=UNITS, help="of IN's times (default: the format's)")
    parser.add_argument("--limit", type=int, help="requests to convert")
    parser.add_argument("--errors", choices=["skip", "fail"], default="skip")
    parser.add_argument("--tokenizer", help="name or folder, for formats that hold text")
    parser.add_argument("--vocab-size", type=int, default=32_000, help="of made-up token ids")
    parser.add_argument(
        "--reveal-outputs",
        action=argparse.BooleanOptionalAction,
        help="take unnamed outputs from the session's next prompt (default: where needed)",
    )
    parser.add_argument(
        "--sessions-per-second", type=float, default=1.0, help="for formats without times"
    )
    parser.add_argument("--seed", type=int, default=0, help="of made-up arrival times")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
