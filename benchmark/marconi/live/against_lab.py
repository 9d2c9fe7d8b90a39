"""Does the simulator hit what a real server hits, request by request?

    python benchmark/marconi/lab_against_life.py --model MODEL --trace FILE --limit 200 \\
        --scale-lengths 4 --kv-tokens 4096 --states 16 --policy lru,server:1,server:2:0.5

Replays the trace against a real server that runs one request at a time, then serves what was sent
and answered, token by token, from the simulator's cache in pools of the same size; with
--host-share above a host tier. Ends with 1 if any request's cached tokens differ.

With --active N it plays a closed loop of N sessions instead, against a server that runs --running
requests at a time in the order of --schedule, says how many requests' cached tokens differ, and
ends with 1 if the simulator's token hit rate is more than a point from the server's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from demonstration.measures import victims_since
from lab.spec import HostSpec
from policies import PolicyError, check_policy
from sglang.srt.marconi_utils import ModelCost, cost_from_config
from sglang.srt.mem_cache.marconi.costs.architectures import DTYPE_BYTES
from sglang.srt.mem_cache.marconi.costs.fields import Fields
from sglang.srt.mem_cache.marconi.tuning.hosted_cache import WRITE_POLICIES
from tqdm import tqdm
from traces import read_trace

from live.history import TokenSource
from live.lab_side import ServerShape, predict
from live.run import Pace, Player, Sent
from live.server_api import ServerUnreachable, flush_cache, marconi_counters, served_model
from live.servers import ServerFailed, launch_servers
from live.under_load import Loop, compare_loaded
from live.workload import Selection, Turn


@dataclass(frozen=True)
class Agreement:
    """One policy's comparison.

    Attributes:
        cached_tokens: the server's and the simulator's, of all requests together.
        differing: index, prompt tokens, the server's cached tokens and the simulator's.
        victims: evictions by "pool:kind", the server's and the simulator's; None where the
            server counts none.
    """

    policy: str
    compared: int
    cached_tokens: tuple[int, int]
    differing: tuple[tuple[int, int, int, int], ...]
    victims: tuple[dict[str, int], dict[str, int]] | None

    @property
    def agrees(self) -> bool:
        return not self.differing and (self.victims is None or self.victims[0] == self.victims[1])


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_arguments(argv)
    torch.set_num_threads(1)
    ends_well = True
    try:
        shape = ServerShape(
            *(options.kv_tokens, options.states),
            chunked_prefill=options.chunked_prefill_size,
            host=host_spec(options),
        )
        reader = read_trace(
            options.trace,
            format=options.format,
            block=options.block,
            tokenizer=options.tokenizer,
        )
        selection = Selection(
            limit=options.limit,
            max_input_tokens=options.max_input_tokens,
            divisor=options.scale_lengths,
            block=reader.block,
        )
        source = TokenSource(selection.scaled_block, options.vocab_size)
        turns = selection.turns(reader)
        for policy in options.policy.split(","):
            check_policy(policy)
            with tqdm(total=len(turns), desc=policy, unit="request") as bar:
                if options.active is not None:
                    loop = Loop(options.active, options.running, options.schedule)
                    flags = server_arguments(policy, shape)
                    loaded = compare_loaded(
                        *(policy, flags, turns, source, shape, loop, options.model),
                        *(model_cost(options.model), options.port, bar.update),
                    )
                    print(loaded, flush=True)
                    ends_well &= loaded.agrees
                    continue
                result = compare(
                    policy, turns, source, shape, options.model, options.port, bar.update
                )
            print(report(result))
            ends_well &= result.agrees
    except (ServerFailed, ServerUnreachable, PolicyError, ValueError, OSError) as error:
        print(f"lab_against_life: {error}", file=sys.stderr)
        return 1
    return 0 if ends_well else 1


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="a small model's folder")
    parser.add_argument(
        "--policy", default="lru,server:1,server:2:0.5", help="lru, server:N or server:N:ALPHA"
    )
    parser.add_argument("--kv-tokens", type=int, default=4096)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--chunked-prefill-size", type=int, default=8192)
    parser.add_argument("--block", type=int, help="tokens a block id; default: the format's")
    parser.add_argument("--format", default="auto", help="of the trace; by default found out")
    parser.add_argument("--tokenizer", help="name or folder, for traces of text")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--scale-lengths", type=int, default=1)
    parser.add_argument("--max-input-tokens", type=int)
    parser.add_argument("--vocab-size", type=int, default=256)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host-share", type=float, help="as --hicache-ratio: a host tier below")
    parser.add_argument(
        "--host-write-policy", choices=tuple(WRITE_POLICIES), default="write_through"
    )
    load = parser.add_argument_group("under load")
    load.add_argument("--active", type=int, help="sessions of a closed loop without think time")
    load.add_argument("--running", type=int, default=2, help="requests that run at a time")
    load.add_argument("--schedule", choices=("fcfs", "lpm", "hrrn"), default="fcfs")
    return parser.parse_args(argv)


def host_spec(options: argparse.Namespace) -> HostSpec | None:
    """The host tier that was asked for.

    Raises:
        ValueError: none can be so large, or the simulator has none under load.
    """
    share = options.host_share
    if share is None:
        return None
    if not 0 < share < math.inf:
        raise ValueError(f"--host-share is {share:g}; allowed is a number > 0")
    if options.active is not None:
        raise ValueError(
            f"--host-share is {share:g} with --active; allowed is one without the other"
        )
    return HostSpec(share, options.host_write_policy)


def server_arguments(policy: str, shape: ServerShape) -> tuple[str, ...]:
    """The flags of the server that the simulator's ``policy`` stands for.

    Raises:
        PolicyError: no server runs that policy.
    """
    common = (
        *("--mamba-radix-cache-strategy", "extra_buffer", "--max-running-requests", "1"),
        *("--max-total-tokens", str(shape.kv_tokens), "--max-mamba-cache-size", str(shape.states)),
        *("--context-length", str(shape.kv_tokens), "--sleep-on-idle"),
        *("--chunked-prefill-size", str(shape.chunked_prefill)),
        *host_arguments(shape.host),
    )
    if policy == "lru":
        return common
    name, *parts = policy.split(":")
    if name != "server":
        raise PolicyError(f"--policy is {policy!r}; allowed are lru, server:N and server:N:ALPHA")
    flags = ("--marconi-evict-policy", "--marconi-eff-weight")
    return (*common, *(word for pair in zip(flags, parts, strict=False) for word in pair))


def host_arguments(host: HostSpec | None) -> tuple[str, ...]:
    """The flags of a host tier, with a copy that a CPU can make."""
    if host is None:
        return ()
    return (
        *("--enable-hierarchical-cache", "--hicache-ratio", f"{host.share:g}"),
        *("--hicache-write-policy", host.write_policy),
        *("--hicache-io-backend", "direct", "--hicache-mem-layout", "layer_first"),
    )


def compare(
    policy: str,
    turns: Sequence[Turn],
    source: TokenSource,
    shape: ServerShape,
    model: Path,
    port: int,
    on_request: Any,
) -> Agreement:
    """Replay against a server with ``policy``, and ask the simulator about the same requests."""
    flags = {"life": server_arguments(policy, shape)}
    with (
        tempfile.TemporaryDirectory(prefix="lab-against-life-") as logs,
        launch_servers(model, flags, Path(logs), port=port) as servers,
    ):
        url = servers["life"].base_url
        flush_cache(url)
        before = marconi_counters(url)
        sent = play(url, turns, source, on_request)
        after = marconi_counters(url)
    return agreement(policy, sent, before, after, shape, model)


def play(url: str, turns: Sequence[Turn], source: TokenSource, on_request: Any) -> list[Sent]:
    """All turns, one at a time, every reply as long as the trace's."""
    player = Player(
        url, source, api="generate", model=served_model(url), ignore_eos=True, timeout=600.0
    )
    sent = player.play(turns, Pace(None, 1), lambda _: on_request())
    failed = [one for one in sent if one.error is not None]
    if failed:
        raise ValueError(f"{len(failed)} requests failed, the first with: {failed[0].error}")
    return sent


def agreement(
    policy: str,
    sent: Sequence[Sent],
    before: Sequence[Any],
    after: Sequence[Any],
    shape: ServerShape,
    model: Path,
) -> Agreement:
    """Hold the server's cached tokens and victims against the simulator's."""
    cost = model_cost(model)
    # Its own request at the start apart, a server has served nothing but what was sent.
    passes = int(before[0]["requests"]) if before else 0
    predicted = predict(sent, policy, cost, shape, passes)
    life = [int(one.answer.cached_tokens or 0) for one in sent if one.answer is not None]
    differing = tuple(
        (one.turn.index, len(one.prompt), cached, hit)
        for one, cached, hit in zip(sent, life, predicted.hits, strict=True)
        if cached != hit
    )
    counted = victims_since(before[0], after[0]) if before and after else None
    victims = None
    if counted is not None and predicted.victims is not None:
        victims = (counted, predicted.victims)
    return Agreement(policy, len(sent), (sum(life), sum(predicted.hits)), differing, victims)


def model_cost(model: Path) -> ModelCost:
    """Of the model in a folder, whose server keeps KV and convolutions in the model's own type.

    Raises:
        ValueError: the folder does not say which, or none that is known.
    """
    config = json.loads((model / "config.json").read_text())
    outer = Fields(config)
    text = outer.nested("text_config") or outer
    dtype = outer.get("dtype", "torch_dtype") or text.get("dtype", "torch_dtype")
    if dtype not in DTYPE_BYTES:
        raise ValueError(
            f"{model / 'config.json'} says dtype {dtype!r}; allowed are {', '.join(DTYPE_BYTES)}"
        )
    size = DTYPE_BYTES[dtype]
    return cost_from_config(config, kv_dtype_bytes=size, conv_dtype_bytes=size)


def report(result: Agreement) -> str:
    """The comparison in words."""
    lines = [
        f"{result.policy}: {result.compared} requests compared, {len(result.differing)} differ "
        f"({result.cached_tokens[0]} cached tokens on the server, {result.cached_tokens[1]} in the "
        "simulator)"
    ]
    lines += [
        f"  request {index}, {length} tokens: server {cached}, simulator {hit}"
        for index, length, cached, hit in result.differing[:10]
    ]
    if result.victims is not None:
        life, lab = result.victims
        word = "the same victims by kind" if life == lab else f"server {life}, simulator {lab}"
        lines.append(f"  evictions: {word}" + (f": {life}" if life == lab else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
