"""Which split of memory, policy, admission and path cap would have saved most FLOPs?

    sglang-marconi advise --recording FILE --model config.json --memory-gib 40

Reads what a server wrote under ``--marconi-record``, replays it on block hashes, one request at a
time, and prints FLOPs saved over ``--mamba-full-memory-ratio`` and by elastic memory, the launch
command of the best, and what cached states of other types would hit. The trace lab's ``advise.py``
does the same for traces of other formats.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sglang.srt.marconi_utils import ModelCost, cost_by_name, cost_from_config
from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest, read_recording
from sglang.srt.mem_cache.marconi.advice.replay import (
    ELASTIC,
    POLICY_ROWS,
    RATIOS,
    Advice,
    Option,
    advise,
)
from sglang.srt.mem_cache.marconi.advice.state_types import TypedStates, by_state_type


def main(argv: Sequence[str] | None = None) -> int:
    """Print the curve and the command."""
    parser = argparse.ArgumentParser(
        prog="sglang-marconi advise",
        description=(__doc__ or "").replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recording", required=True, help="a file of --marconi-record")
    add_arguments(parser)
    options = parser.parse_args(argv)
    try:
        path = Path(options.recording)
        requests, block = read_recording(path, lambda line: print(line, file=sys.stderr))
        print(advised(options, requests, block, load_model(options.model)))
    except (ValueError, KeyError, OSError) as error:
        sys.exit(f"sglang-marconi advise: {error}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that do not depend on where the requests come from."""
    parser.add_argument("--model", required=True, help="a known name, or a config.json")
    parser.add_argument(
        "--memory-gib", type=_positive, required=True, help="what is left for both pools, in GiB"
    )
    parser.add_argument("--ratios", type=_ratios, default=RATIOS, help="comma-separated")
    parser.add_argument(
        "--policy",
        action="append",
        choices=tuple(POLICY_ROWS),
        metavar="NAME",
        help="try this one beside stock LRU; may be given several times (default: all). One of "
        + "; ".join(f'"{name}"' for name in POLICY_ROWS),
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def load_model(model: str) -> ModelCost:
    """A model's cost by name or from its ``config.json``.

    Raises:
        KeyError, ValueError: neither; or no cost model for the architecture.
    """
    path = Path(model)
    if path.is_file():
        return cost_from_config(json.loads(path.read_text()), name=path.stem)
    return cost_by_name(model)


def advised(
    options: argparse.Namespace, requests: Sequence[HashedRequest], block: int, cost: ModelCost
) -> str:
    """The advice as text, as the options want it.

    Raises:
        ValueError: see :func:`advise`.
    """
    advice = advise(
        requests,
        cost,
        options.memory_gib * 2**30,
        block_tokens=block,
        ratios=options.ratios,
        rows=tuple(options.policy or POLICY_ROWS),
    )
    types = by_state_type(
        requests,
        cost,
        options.memory_gib * 2**30,
        advice.static,
        block_tokens=block,
        ratios=advice.ratios,
    )
    if options.json:
        more = {"command": command(advice.best, options.model), "state_types": types}
        return json.dumps({**asdict(advice), **more}, default=asdict)
    parts = [table(advice), summary(advice, options.model), type_table(types, cost)]
    return "\n\n".join(filter(None, parts))


def table(advice: Advice) -> str:
    """FLOPs saved, in percent: policies by row, ratios and elastic memory by column."""
    columns = [*(f"{ratio:g}" for ratio in advice.ratios), ELASTIC]
    lines = ["FLOPs saved, %, by --mamba-full-memory-ratio"]
    lines.append(f"{'policy':<28}" + "".join(f"{column:>9}" for column in columns))
    for policy, saved in advice.saved.items():
        cells = (f"{100 * saved[c]:.1f}" if c in saved else "-" for c in columns)
        lines.append(f"{policy:<28}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def type_table(types: Sequence[TypedStates], cost: ModelCost) -> str:
    """Token hit rates by type of cached states, the config's type marked; empty for none."""
    if not types:
        return ""
    lines = [
        f"{types[0].option.policy} in the same memory, by the type of cached states, each at the "
        "ratio that saves most (*: the config's type)",
        f"{'states held as':<20}{'MiB each':>10}{'slots':>9}{'ratio':>8}{'token hit rate, %':>19}"
        f"{'FLOPs saved, %':>16}",
    ]
    for typed in types:
        own = "*" if typed.state_bytes == cost.state_bytes else ""
        lines.append(
            f"{typed.held_as + own:<20}{typed.state_bytes / 2**20:>10.2f}{typed.states:>9}"
            f"{typed.option.ratio:>8g}{100 * typed.option.token_hit_rate:>19.1f}"
            f"{100 * typed.option.saved:>16.1f}"
        )
    return "\n".join(lines)


def summary(advice: Advice, model: str) -> str:
    """What is best, what it is worth beside stock's default, and how to launch it."""
    lines = [
        f"Best: {_named(advice.best)} of FLOPs saved over {advice.requests} requests; "
        f"{_named(advice.stock)}, as SGLang does by default.",
        command(advice.best, model),
    ]
    if advice.best.ratio is None:
        lines += [
            f"Where SGLang cannot serve unified memory: {_named(advice.static)}.",
            command(advice.static, model),
        ]
    return "\n".join(lines)


def _named(option: Option) -> str:
    memory = "elastic memory" if option.ratio is None else f"ratio {option.ratio:g}"
    return f"{option.policy} with {memory}, {100 * option.saved:.1f} %"


def command(option: Option, model: str) -> str:
    """How to launch it."""
    memory = "--enable-unified-memory"
    if option.ratio is not None:
        memory = f"--mamba-full-memory-ratio {option.ratio:g}"
    flags = POLICY_ROWS[option.policy].flags
    return f"python3 -m sglang.launch_server --model {model} {memory} {flags}".rstrip()


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is a number > 0")
    return value


def _ratios(text: str) -> tuple[float, ...]:
    return tuple(_positive(part) for part in text.split(","))
