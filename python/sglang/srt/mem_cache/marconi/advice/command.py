"""Which split of memory, policy, admission and path cap would have saved most FLOPs, in what order?

    sglang-marconi advise --recording FILE --model config.json --memory-gib 40

Reads what a server wrote under ``--marconi-record``, replays it on block hashes, one request at a
time, and prints FLOPs saved over ``--mamba-full-memory-ratio`` and by elastic memory, the launch
command of the best, and what cached states of other types would hit. With ``--tflops`` and
``--running`` it serves the requests once more as they arrived, under each ``--schedule-policy``;
with ``--tflops`` and ``--host-ratio`` above a host tier of each size and write policy.
The trace lab's ``advise.py`` does the same for traces of other formats.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from sglang.srt.marconi_utils import ModelCost, cost_by_name, cost_from_config
from sglang.srt.mem_cache.marconi.advice.host_tier import (
    HostAdvice,
    HostSpeeds,
    advise_host,
    host_text,
    orders_host_tier,
)
from sglang.srt.mem_cache.marconi.advice.load.schedules import FCFS
from sglang.srt.mem_cache.marconi.advice.load.service import ServiceTimes
from sglang.srt.mem_cache.marconi.advice.order_text import order_text
from sglang.srt.mem_cache.marconi.advice.orders import (
    LoadedServer,
    OrderAdvice,
    advise_order,
    arrived,
)
from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest, read_recording
from sglang.srt.mem_cache.marconi.advice.replay import (
    ELASTIC,
    POLICY_ROWS,
    RATIOS,
    STOCK,
    WORTHWHILE,
    Advice,
    Option,
    advise,
    shadow_of,
)
from sglang.srt.mem_cache.marconi.advice.state_types import TypedStates, by_state_type
from sglang.srt.mem_cache.marconi.costs.kv_types import AUTO, KV_TYPES, with_kv_type
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache


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
    parser.add_argument(
        "--kv-cache-dtype",
        choices=tuple(KV_TYPES),
        default=AUTO,
        help="of the server; auto: two bytes a number (default: %(default)s)",
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
    parser.add_argument("--tflops", type=_speed, help="TFLOP/s that the server prefills with")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    load = parser.add_argument_group("orders of service, for requests whose arrival is known")
    load.add_argument("--running", type=_count, help="as its --max-running-requests")
    load.add_argument(
        "--prefill-ms", type=_milliseconds, default=0.0, help="more for each prefill batch"
    )
    load.add_argument("--decode-ms-per-token", type=_milliseconds, default=20.0)
    load.add_argument(
        "--load-requests",
        type=_count,
        default=2000,
        metavar="N",
        help="serve the first N (default: %(default)s); the whole recording is replayed before",
    )
    host = parser.add_argument_group("a host tier (HiCache)")
    host.add_argument(
        "--host-ratio",
        type=_host_ratios,
        metavar="TIMES",
        help="its memory in multiples of the device's, as --hicache-ratio; comma-separated",
    )
    host.add_argument(
        "--host-gbps", type=_speed, default=50.0, help="GB/s of a copy (default: %(default)g)"
    )


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
        ValueError: see :func:`advise`; or a host tier without the server's speed, without which
            nobody can say what a copy is worth; or KV of another type than the model's own, whose
            layers are not known.
    """
    cost = with_kv_type(cost, options.kv_cache_dtype)
    model_flags = options.model
    if options.kv_cache_dtype != AUTO:
        model_flags += f" --kv-cache-dtype {options.kv_cache_dtype}"
    if options.host_ratio is not None and options.tflops is None:
        raise ValueError("--host-ratio is given without --tflops; allowed is with a number > 0")
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
    orders, left_out = _orders(options, requests, block, cost, advice)
    hosts = _hosts(options, requests, block, cost, advice)
    if options.json:
        more = {
            "command": command(advice.best, model_flags, orders),
            "state_types": types,
            "orders": {_titled(option): order for option, order in orders.items()},
            "orders_left_out": left_out,
            "host_tier": [{**asdict(one), "command": _above(one, model_flags)} for one in hosts],
        }
        return json.dumps({**asdict(advice), **more}, default=asdict)
    parts = [table(advice)]
    if orders:
        server = _loaded_server(options)
        parts += [order_text(_titled(option), found, server) for option, found in orders.items()]
    parts += [summary(advice, model_flags, orders), left_out, type_table(types, cost)]
    if hosts:
        parts.append(host_text(hosts, _speeds(options), advice.static))
        parts += [_host_summary(one, advice.static, model_flags) for one in hosts]
        parts.append(_not_tried(options.policy or (), cost))
    parts = [part for part in parts if part]
    return "\n\n".join(filter(None, parts))


Orders = Mapping[Option, OrderAdvice]
"""What the orders of service give with an option."""


def _orders(
    options: argparse.Namespace,
    requests: Sequence[HashedRequest],
    block: int,
    cost: ModelCost,
    advice: Advice,
) -> tuple[Orders, str]:
    """The orders with the best options and with stock, or none and why they are left out."""
    what = "To compare orders of service (--schedule-policy), give"
    if options.tflops is None or options.running is None:
        return {}, (
            f"{what} --tflops (what the server prefills with) and --running (its "
            "--max-running-requests)."
        )
    sent = arrived(requests, options.load_requests)
    if not sent:
        return {}, f"{what} a recording with arrivals (waited_ms in its lines): this one has none."

    def found(option: Option) -> OrderAdvice:
        def empty() -> ShadowCache:
            memory = options.memory_gib * 2**30
            cache = shadow_of(option.policy, option.ratio, cost, memory, block)
            assert cache is not None, "it was replayed before"
            return cache

        return advise_order(sent, cost, empty, block, _loaded_server(options))

    tried = dict.fromkeys((advice.best, advice.static, advice.stock))
    return {option: found(option) for option in tried}, ""


def _hosts(
    options: argparse.Namespace,
    requests: Sequence[HashedRequest],
    block: int,
    cost: ModelCost,
    advice: Advice,
) -> tuple[HostAdvice, ...]:
    """What a host tier would have saved, where its size is given."""
    if options.host_ratio is None:
        return ()
    return advise_host(
        *(requests, cost, options.memory_gib * 2**30),
        block_tokens=block,
        ratios=advice.ratios,
        rows=tuple(options.policy or POLICY_ROWS),
        host_ratios=options.host_ratio,
        speeds=_speeds(options),
    )


def _speeds(options: argparse.Namespace) -> HostSpeeds:
    return HostSpeeds(options.tflops * 1e12, options.host_gbps * 1e9)


def _host_summary(found: HostAdvice, without: Option, model_flags: str) -> str:
    """What is best above a host tier of one size, if it is better than none."""
    size = f"{found.host_ratio:g} times the device's memory"
    best = f"{found.best.title}, {100 * found.best.saved:.1f} % of prefill seconds saved"
    if found.best.saved < without.saved + WORTHWHILE:
        return f"A host tier of {size} is not worth it: {best}; {_named(without)} without one."
    return (
        f"Best with a host tier of {size}: {best}; {found.stock.title}, "
        f"{100 * found.stock.saved:.1f} %, as SGLang does by default where there is one.\n"
        f"{_above(found, model_flags)}"
    )


def _not_tried(policies: Sequence[str], cost: ModelCost) -> str:
    """Those that were asked for and leave the host as it is, which stock shows."""
    passed_over = [p for p in policies if p != STOCK and not orders_host_tier(p, cost)]
    return f"Not tried above a host tier: {', '.join(passed_over)}." if passed_over else ""


def _above(found: HostAdvice, model_flags: str) -> str:
    """How to launch what is best above a host tier."""
    best = found.best
    plain = Option(best.policy, best.ratio, best.saved, best.token_hit_rate)
    return f"{command(plain, model_flags)} {best.flags}"


def _loaded_server(options: argparse.Namespace) -> LoadedServer:
    service = ServiceTimes(
        prefill_flops_per_second=options.tflops * 1e12,
        decode_seconds_per_token=options.decode_ms_per_token / 1000,
        batch_seconds=options.prefill_ms / 1000,
    )
    return LoadedServer(service, options.running)


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


def summary(advice: Advice, model_flags: str, orders: Orders = MappingProxyType({})) -> str:
    """What is best, what it is worth beside stock's default, and how to launch it."""
    lines = [
        f"Best: {_named(advice.best)} of FLOPs saved over {advice.requests} requests; "
        f"{_named(advice.stock)}, as SGLang does by default.",
        command(advice.best, model_flags, orders),
    ]
    if advice.best.ratio is None:
        lines += [
            f"Where SGLang cannot serve unified memory: {_named(advice.static)}.",
            command(advice.static, model_flags, orders),
        ]
    return "\n".join(lines)


def _named(option: Option) -> str:
    return f"{_titled(option)}, {100 * option.saved:.1f} %"


def _titled(option: Option) -> str:
    memory = "elastic memory" if option.ratio is None else f"ratio {option.ratio:g}"
    return f"{option.policy} with {memory}"


def command(option: Option, model_flags: str, orders: Orders = MappingProxyType({})) -> str:
    """How to launch it, in the order of service that is advised for it.

    Args:
        model_flags: the model, and what else of its flags is given.
    """
    memory = "--enable-unified-memory"
    if option.ratio is not None:
        memory = f"--mamba-full-memory-ratio {option.ratio:g}"
    flags = [memory, POLICY_ROWS[option.policy].flags]
    if option in orders and orders[option].advised != FCFS.name:
        flags.append(f"--schedule-policy {orders[option].advised}")
    return " ".join(["python3 -m sglang.launch_server --model", model_flags, *filter(None, flags)])


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is a number > 0")
    return value


def _speed(text: str) -> float:
    value = _number(text)
    if not 1e-3 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is a number from 0.001 to 1000000")
    return value


def _host_ratios(text: str) -> tuple[float, ...]:
    values = tuple(map(_number, text.split(",")))
    if not all(0 < value <= 1000 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed are numbers > 0 and up to 1000")
    return values


def _milliseconds(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is a number >= 0")
    return value


def _number(text: str) -> float:
    """``nan`` for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is a whole number > 0")
    return int(text)


def _ratios(text: str) -> tuple[float, ...]:
    return tuple(_positive(part) for part in text.split(","))
