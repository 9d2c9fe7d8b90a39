"""Sends a trace to running servers, and compares what they hit and how fast they are.

    python benchmark/marconi/replay.py --trace FILE --url http://127.0.0.1:30000 --speed 10

    python benchmark/marconi/replay.py --trace FILE --model MODEL --concurrency 4 \\
        --launch "--max-total-tokens 8192" \\
        --launch "--max-total-tokens 8192 --marconi-evict-policy 2" --label stock --label marconi

Open loop with --speed (arrivals by the trace's timestamps, a session's next turn not before its
reply), closed loop with --concurrency alone. Every turn is built on the server's actual reply.
Servers come one after another; each gets the same requests. One JSON row a server and run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from traces import read_trace

from live.client import APIS
from live.history import TokenSource
from live.rows import counted_between, mean_rows, request_row, summary, table
from live.run import Pace, Player, Sent
from live.server_api import ServerUnreachable, flush_cache, marconi_counters, served_model
from live.servers import Server, ServerFailed, launch_servers
from live.workload import Selection, Turn


@dataclass(frozen=True)
class Target:
    """A server to send to: one that runs at ``url``, or one to start with ``arguments``."""

    label: str
    url: str | None
    arguments: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Replay; 0 when every server was measured, 1 when one could not be."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    options = parse_arguments(argv)
    targets = make_targets(options)
    try:
        reader = read_trace(
            options.trace,
            format=options.format,
            block=options.block,
            tokenizer=options.tokenizer,
        )
        options.block = reader.block
        turns = make_selection(options).turns(reader)
        if len(turns) <= options.warm_up:
            raise ValueError(
                f"--warm-up is {options.warm_up}, but {options.trace} gives {len(turns)} requests"
            )
        rows = [
            measure(target, run, turns, options)
            for run in range(options.repeats)
            for target in rotated(targets, run)
        ]
    except (ServerUnreachable, ServerFailed, ValueError, OSError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; no server that was started here is left running.", file=sys.stderr)
        return 130
    order = [target.label for target in targets]
    print(table(sorted(mean_rows(rows), key=lambda row: order.index(row["server"]))))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what is sent")
    what.add_argument("--trace", type=Path, required=True)
    what.add_argument("--block", type=int, help="tokens a block id; default: the format's")
    what.add_argument("--format", default="auto", help="of the trace; by default found out")
    what.add_argument("--tokenizer", help="name or folder, for traces of text")
    what.add_argument("--limit", type=int, help="only so many requests")
    what.add_argument("--sessions", type=int, help="only the sessions that start first")
    what.add_argument("--scale-lengths", type=int, default=1, help="divide all lengths by this")
    what.add_argument(
        "--max-input-tokens", type=int, help="end a session at its first longer prompt"
    )
    what.add_argument(
        "--vocab-size", type=int, default=256, help="block ids become token ids below this"
    )
    what.add_argument("--ignore-eos", action="store_true", help="replies as long as the trace's")
    what.add_argument("--warm-up", type=int, default=0, help="first requests, not counted")
    what.add_argument("--flush-cache", action="store_true", help="empty the cache before a run")
    pace = parser.add_argument_group("when")
    pace.add_argument("--speed", type=float, help="open loop: the trace's time, so much faster")
    pace.add_argument("--concurrency", type=int, help="requests at a time (closed loop: 1)")
    pace.add_argument("--timeout", type=float, default=600.0, help="seconds a request may take")
    where = parser.add_argument_group("where")
    where.add_argument("--url", action="append", default=[], help="a running server; repeat")
    where.add_argument(
        "--launch", action="append", default=[], help="start a server with these flags; repeat"
    )
    where.add_argument("--model", type=Path, help="the model that --launch serves")
    where.add_argument("--port", type=int, default=0, help="port of --launch (default: a free one)")
    where.add_argument("--log-dir", type=Path, help="keep the logs of --launch here")
    where.add_argument("--label", action="append", default=[], help="a server's name; repeat")
    where.add_argument("--api", choices=APIS, default="generate")
    where.add_argument("--repeats", type=int, default=1, help="runs of each server, order rotated")
    out = parser.add_argument_group("results")
    out.add_argument("--out", type=Path, help="append a JSON row a server and run")
    out.add_argument("--per-request", type=Path, help="append a JSON line a request")
    options = parser.parse_args(argv)
    if not options.url and not options.launch:
        parser.error("give --url, or --launch and --model")
    if options.launch and options.model is None:
        parser.error("--launch needs --model")
    if options.label and len(options.label) != len(options.url) + len(options.launch):
        parser.error("--label must be given as often as --url and --launch together")
    for flag in ("speed", "concurrency", "repeats", "vocab_size"):
        value = getattr(options, flag)
        if value is not None and value <= 0:
            parser.error(f"--{flag.replace('_', '-')} is {value}; it must be above 0")
    if options.speed is None and options.concurrency is None:
        options.concurrency = 1
    return options


def make_targets(options: argparse.Namespace) -> list[Target]:
    """The servers to compare, in the order given."""
    targets = [Target(url, url.rstrip("/"), ()) for url in options.url]
    targets += [Target(flags, None, tuple(shlex.split(flags))) for flags in options.launch]
    labels = options.label or [target.label for target in targets]
    return [
        Target(label, target.url, target.arguments)
        for label, target in zip(labels, targets, strict=True)
    ]


def make_selection(options: argparse.Namespace) -> Selection:
    """What the command line takes of the trace."""
    return Selection(
        sessions=options.sessions,
        limit=options.limit,
        max_input_tokens=options.max_input_tokens,
        divisor=options.scale_lengths,
        block=options.block,
    )


def rotated(targets: Sequence[Target], run: int) -> list[Target]:
    """The order of one run: each starts with another server."""
    return [targets[(run + place) % len(targets)] for place in range(len(targets))]


def measure(
    target: Target, run: int, turns: Sequence[Turn], options: argparse.Namespace
) -> dict[str, Any]:
    """Play the workload against one server once; returns the row, which is also written."""
    with reachable(target, options) as (url, server):
        player = Player(
            url,
            TokenSource(make_selection(options).scaled_block, options.vocab_size),
            api=options.api,
            model=served_model(url),
            ignore_eos=options.ignore_eos,
            timeout=options.timeout,
        )
        pace = Pace(options.speed, options.concurrency)
        if options.flush_cache:
            flush_cache(url)
        with tqdm(total=len(turns), desc=target.label[-40:], unit="request") as bar:

            def advance(_: Sent) -> None:
                bar.update()

            player.play(turns[: options.warm_up], pace, advance)
            before = marconi_counters(url)
            busy = None if server is None else server.cpu_seconds()
            sent = player.play(turns[options.warm_up :], pace, advance)
        if server is not None and busy is not None:
            busy = server.cpu_seconds() - busy
        counted = counted_between(before, marconi_counters(url))
    row = {
        "trace": options.trace.name,
        "server": target.label,
        "arguments": list(target.arguments),
        "run": run,
        "api": options.api,
        "pace": str(pace),
        "warm_up": options.warm_up,
        "scale_lengths": options.scale_lengths,
        **summary(sent),
        "server_cpu_seconds": busy,
        "marconi": counted,
    }
    append(options.out, [row])
    append(
        options.per_request,
        [
            {
                "trace": options.trace.name,
                "server": target.label,
                "run": run,
                **request_row(one),
            }
            for one in sent
        ],
    )
    return row


@contextmanager
def reachable(target: Target, options: argparse.Namespace) -> Iterator[tuple[str, Server | None]]:
    """The target's address, and the server where it had to be started; it ends with the block."""
    if target.url is not None:
        yield target.url, None
        return
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch:
        logs = options.log_dir or Path(scratch)
        logs.mkdir(parents=True, exist_ok=True)
        flags = {"".join(c if c.isalnum() else "-" for c in target.label)[:60]: target.arguments}
        with launch_servers(options.model, flags, logs, port=options.port) as servers:
            (server,) = servers.values()
            yield server.base_url, server


def append(path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """Add JSON lines to a file."""
    if path is not None:
        with path.open("a") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
