"""What one run of the demo does, from its command line: model, memory, servers, workloads."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from live.servers import Pools
from sglang.srt.marconi_utils import ModelCost, cost_from_config
from traces.generator.chat import MAX_HISTORY, SCALE

from demonstration.clients import Crowd
from demonstration.contenders import STOCK, TITLES, own_flags
from demonstration.shared_prefix import SharedPrefix

DESCRIPTION = """\
Serves the same requests with stock LRU and with Marconi, and prints and draws the comparison.

    python benchmark/marconi/demo.py --models DIR --out DIR
    python benchmark/marconi/demo.py --model-path MODEL --tp N --out DIR -- --attention-backend fa3

The first serves a tiny random model on a CPU: the servers stand side by side and are busy one
after the other. The second serves a real model on GPUs, one server at a time; lengths and memory
grow with what a state of the model weighs. What follows a lone -- is passed to every server.
NOT RUN ON A GPU: its command lines are tested, and it was tried on the tiny model on a CPU.

Every server has the same bytes for its cache, sized so that each workload outgrows them. It ends
with a line a workload that says who won by how much, and with results.json, table.md,
comparison.png and comparison.svg in the output folder."""

ARCHITECTURE = "Qwen3NextForCausalLM"
WORKLOADS = ("clients", "shared-prefix", "chat")
DEFAULT_WORKLOADS = WORKLOADS[:2]
#: KV tokens that a state of the tiny model weighs as much as; its workloads are made for that.
TINY_STATE_TOKENS = 310
STRATEGY = ("--mamba-radix-cache-strategy", "extra_buffer")
# --sleep-on-idle: a server that waits must not spin on the CPU that another one is timed on.
CPU_FLAGS = ("--context-length", "8192", "--sleep-on-idle", "--log-level", "warning")


@dataclass(frozen=True)
class Plan:
    """Every knob of one run of the demo.

    Attributes:
        model: a folder, or a name on the hub.
        side_by_side: all servers stand at the same time, on this CPU; else one after another.
        scale: all lengths of the workloads are multiplied by it.
        eff_weight: the paper's alpha, or "auto": tuned, as in the paper.
        rounds: runs of each workload on each server; the chat has one.
        server_arguments: the user's own, for every server.
    """

    model: str
    side_by_side: bool
    servers: tuple[str, ...]
    workloads: tuple[str, ...]
    pools: Pools
    scale: int
    eff_weight: str
    rounds: int
    seed: int
    clients: Crowd
    shared_prefix: SharedPrefix
    chat_sessions: int
    server_arguments: tuple[str, ...]
    port: int
    start_seconds: float
    run_seconds: float

    def server_flags(self) -> dict[str, tuple[str, ...]]:
        """The flags of each server, by its name; the first is what the others are set against."""
        machine = CPU_FLAGS if self.side_by_side else ()
        common = (*STRATEGY, *machine, *self.pools.arguments(), *self.server_arguments)
        own = own_flags(self.eff_weight)
        return {name: (*common, *own[name]) for name in self.servers}

    def memory_bytes(self, cost: ModelCost) -> int:
        """Bytes of every server's cache, states and KV together."""
        return int(
            self.pools.kv_tokens * cost.kv_bytes_per_token + self.pools.states * cost.state_bytes
        )

    @property
    def chat_scale(self) -> int:
        """What the lengths of real chats are divided by."""
        return max(SCALE // self.scale, 1)

    @property
    def chat_history(self) -> int:
        """The longest chat, in tokens."""
        return self.scale * MAX_HISTORY


def make_plan(argv: Sequence[str] | None = None) -> tuple[Plan, Path, ModelCost]:
    """The plan that the command line asks for, the folder for its results, the model's costs.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is none that Marconi can count the FLOPs of.
    """
    options = parse_arguments(argv)
    if options.model_path is None:
        model = str(find_tiny_model(options.models))
    else:
        model = str(options.model_path)
    config = read_config(model)
    cost = model_cost(model, config)
    return plan_for(options, model, cost), options.out, cost


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what follows a lone ``--`` is in ``server_arguments``."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--models", type=Path, help="folder with the tiny model, for a CPU")
    model.add_argument("--model-path", help="a real model for GPUs: a folder, or a name on the hub")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--tp", type=int, help="tensor-parallel size of every server")
    parser.add_argument(
        "--workload",
        nargs="+",
        choices=WORKLOADS,
        default=list(DEFAULT_WORKLOADS),
        help="clients: multi-turn conversations with a queue. shared-prefix: SGLang's "
        "generated-shared-prefix by bench_serving. chat: one request at a time; its hits repeat "
        "exactly (alone it has pools of its own: 8,192 tokens, 24 states, and --eff-weight 0.5)",
    )
    parser.add_argument("--servers", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--quick", action="store_true", help="a few requests, to see it work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, help="runs a server and workload (2; quick: 1)")
    parser.add_argument("--clients", type=int, default=24, help="who hold conversations at once")
    parser.add_argument("--sessions", type=int, help="of the chat (32; quick: 6)")
    parser.add_argument("--scale", type=int, help="multiplies all lengths (default: by the model)")
    parser.add_argument("--kv-tokens", type=int, help="KV pool (26,000 times the scale)")
    parser.add_argument("--states", type=int, help="state pool, in states (40)")
    parser.add_argument(
        "--running", type=int, default=2, help="requests that a server runs at once"
    )
    parser.add_argument("--eff-weight", help="the paper's alpha: a number, or auto (default)")
    parser.add_argument("--port", type=int, default=0, help="the first port (default: free ones)")
    parser.add_argument("--start-seconds", type=float, help="a server may take (600; GPU: 3600)")
    parser.add_argument("--run-seconds", type=float, default=7200.0, help="a run may take")
    options = parser.parse_args(words[:cut])
    for name, value in vars(options).items():
        least = 0 if name in ("port", "seed") else 1
        if type(value) is int and value < least:
            parser.error(f"--{name.replace('_', '-')} is {value}; allowed is {least} or more")
    if STOCK not in options.servers or len(set(options.servers)) < 2:
        parser.error(f"--servers must be {STOCK}, which is compared with, and others")
    options.server_arguments = tuple(words[cut + 1 :])
    return options


def plan_for(options: argparse.Namespace, model: str, cost: ModelCost) -> Plan:
    """The plan of a parsed command line for a model of these costs."""
    quick: bool = options.quick
    chat_alone = tuple(options.workload) == ("chat",)
    usual = Pools(8192, 24, running=4) if chat_alone else Pools(26_000, 40, running=2)
    scale = options.scale or scale_of(cost)
    on_cpu = options.model_path is None
    tp = () if options.tp is None else ("--tp", str(options.tp))
    crowd = Crowd(
        clients=options.clients,
        turns=2 if quick else 5,
        shared=256,
        first=(300, 700),
        later=(100, 300),
        reply_length=8,
        seed=options.seed,
    )
    return Plan(
        model=model,
        side_by_side=on_cpu,
        servers=tuple(name for name in TITLES if name in options.servers),
        workloads=tuple(name for name in WORKLOADS if name in options.workload),
        pools=Pools(
            options.kv_tokens or scale * usual.kv_tokens,
            options.states or usual.states,
            options.running or usual.running,
        ),
        scale=scale,
        eff_weight=options.eff_weight or ("0.5" if chat_alone else "auto"),
        rounds=options.rounds or (1 if quick else 2),
        seed=options.seed,
        clients=crowd.scaled(scale),
        shared_prefix=SharedPrefix(
            # As many prefixes as states: what is kept for one prompt's own end costs a prefix.
            groups=40,
            prompts_per_group=2 if quick else 6,
            prefix_length=scale * 768,
            question_length=scale * 96,
            output_length=scale * 8,
            concurrency=options.running or usual.running,
            seed=options.seed,
            # A real model's tokens are text; which one token 70 is, nobody knows.
            **({} if on_cpu else {"output_token": None}),
        ),
        chat_sessions=options.sessions or (6 if quick else 32),
        server_arguments=(*tp, *options.server_arguments),
        port=options.port,
        start_seconds=options.start_seconds or (600.0 if on_cpu else 3600.0),
        run_seconds=options.run_seconds,
    )


def scale_of(cost: ModelCost) -> int:
    """How much longer a model's workloads are than the tiny one's.

    A state that is worth ten times as many tokens of KV meets the same trade between states and
    KV with conversations ten times as long.
    """
    return max(round(cost.state_bytes / cost.kv_bytes_per_token / TINY_STATE_TOKENS), 1)


def find_tiny_model(models: Path) -> Path:
    """The tiny Qwen3-Next in ``models``, or in one of its folders.

    Raises:
        FileNotFoundError: if there is none.
    """
    for config in (models / "config.json", *sorted(models.glob("*/config.json"))):
        if config.is_file() and ARCHITECTURE in json.loads(config.read_text())["architectures"]:
            return config.parent
    raise FileNotFoundError(
        f"no {ARCHITECTURE} in {models}; make one with: "
        f"python -m sglang_cpu_reference.tiny_models {models} --model qwen3-next"
    )


def read_config(model: str) -> dict[str, object]:
    """The ``config.json`` of a folder or of a name on the hub, which is asked for that file alone.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(model) / "config.json"
    if not path.is_file() and not Path(model).exists() and model.count("/") == 1:
        path = _from_hub(model)
    if not path.is_file():
        raise FileNotFoundError(
            f"the model is {model!r}; allowed is a folder with a config.json, or the name of a "
            "model on the hub, as in owner/name"
        )
    config: dict[str, object] = json.loads(path.read_text())
    return config


def model_cost(model: str, config: dict[str, object]) -> ModelCost:
    """What a model's tokens cost to prefill, by its config.

    Raises:
        ValueError: there is no cost model for it, or it has no recurrent state.
    """
    try:
        cost = cost_from_config(config)
    except (KeyError, ValueError) as error:
        raise ValueError(f"the model {model!r} cannot be compared: {error}") from error
    if not cost.state_bytes or not cost.kv_bytes_per_token:
        raise ValueError(f"the model {model!r} is no hybrid of attention and recurrent layers")
    return cost


def command_line(argv: Sequence[str] | None = None) -> str:
    """What was typed, for the results; the script's path as in the repository."""
    words = sys.argv[1:] if argv is None else argv
    return f"python benchmark/marconi/demo.py {shlex.join(words)}"


def _from_hub(name: str) -> Path:
    # Servers are told to stay offline (live.servers.OFFLINE) unless the environment says otherwise.
    os.environ.setdefault("HF_HUB_OFFLINE", "0")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "config.json"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"the model is {name!r}; it is no folder here, and the hub does not give its "
            f"config.json: {str(error).splitlines()[0]}"
        ) from error
