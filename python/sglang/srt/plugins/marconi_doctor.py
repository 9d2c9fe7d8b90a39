"""``sglang-marconi doctor``: what a launch would activate, said without loading the model.

``--contract`` must speak where SGLang's modules moved, so nothing that may move is imported on top.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from sglang.srt.mem_cache.marconi.advice.launch import ONE_MEMORY_LIMIT
from sglang.srt.mem_cache.marconi.attach.setup import model_cost
from sglang.srt.mem_cache.marconi.config import MarconiConfig, MarconiConfigError
from sglang.srt.mem_cache.marconi.costs.architectures import cost_from_config
from sglang.srt.mem_cache.marconi.costs.kv_types import AUTO, KV_TYPES
from sglang.srt.plugins.marconi_contract import COMPILED, CONTRACT
from sglang.srt.plugins.marconi_moves import moves
from sglang.srt.plugins.marconi_names import Release

_ABOUT = """\
usage: sglang-marconi doctor --model-path MODEL [FLAGS OF A LAUNCH]
       sglang-marconi doctor --contract [--sglang WHEEL_OR_FOLDER]

Says what `python -m sglang.launch_server` with the same flags would activate: version and hooks,
the model's cost, what a state weighs, the tree core and why, what is refused, what has limits and
what could be done better.
MODEL may be a config.json. Nothing is loaded but the model's config.

With --contract it says which names of SGLang that the plugin relies on moved: of the installed one,
or of a release that is not installed, whose files are read and not run.

exit status: 0 the launch would be served, nothing moved; 1 it would be refused, something moved;
2 the flags cannot be read
"""


def main(argv: Sequence[str]) -> int:
    """Print the findings; the exit status of the usage above."""
    words = list(argv)
    if not words or words[0] in ("-h", "--help"):
        print(_ABOUT, end="")
        return 0 if words else 2
    if words[0] == "--contract":
        return _contract(words[1:])
    from sglang.srt.plugins import marconi as plugin

    print(
        f"SGLang {metadata.version('sglang')}, sglang-marconi {metadata.version('sglang-marconi')}"
    )
    problems = plugin.find_problems()
    if problems:
        return _refused("this SGLang cannot be wired: " + "; ".join(problems))
    print(f"hooks: all {len(plugin.HOOKS)} targets are in place")
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    try:
        args = prepare_server_args(_with_model_folders(words))
        config = plugin.config_of(args)
        args.resolve_once()
        args.check_server_args()
        if config is None:
            print("no --marconi flag is given: SGLang would be exactly stock")
            return 0
        for line in findings(args, config):
            print(line)
    except SystemExit:
        # argparse has said why.
        return 2
    except MarconiConfigError as error:
        return _refused(str(error))
    except (AssertionError, ImportError, OSError, RuntimeError, ValueError) as error:
        return _refused(f"SGLang itself would not start: {error or type(error).__name__}")
    return 0


def _contract(words: Sequence[str]) -> int:
    import sglang

    root = Path(sglang.__path__[0]).parent
    if words:
        if len(words) != 2 or words[0] != "--sglang":
            print(_ABOUT, end="", file=sys.stderr)
            return 2
        root = Path(words[1])
    try:
        release = Release(root)
    except (FileNotFoundError, BadZipFile) as error:
        print(f"{root}: {error}", file=sys.stderr)
        return 2
    found = list(moves(release, CONTRACT, Release(Path(__file__).parents[3])))
    for move in found:
        note = "" if move.breaks else ", as we call it that is harmless"
        print(f"{move.need.path} {move.words}{note}")
        print(f"    {move.need.kind} of {move.need.user}: {move.need.without}")
    broken = sum(move.breaks for move in found)
    print(f"SGLang {release.version}: {len(CONTRACT)} names are relied on, {broken} moved")
    if release.find(COMPILED) is None:
        print("no compiled tree core is there: its names were not looked for")
    return int(broken > 0)


def findings(server_args: Any, config: MarconiConfig) -> Iterator[str]:
    """What a launch that is not refused would do, a line each.

    Raises:
        MarconiConfigError: it would be refused after all, for the model's costs.
    """
    from sglang.srt.arg_groups.model_override_base import model_config_of
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.configs.mamba_utils import mamba2_state_dtype
    from sglang.srt.mem_cache.mamba_radix.launch_facts import doctor_hints, state_element_bytes

    view = resolving_view(server_args)
    model_config = model_config_of(server_args)
    hf_config = model_config.hf_config
    weight = f", eff weight {config.marconi_eff_weight}" if config.policy_name == "marconi" else ""
    yield (
        f"policy {config.marconi_evict_policy} ({config.policy_name}){weight}, "
        f"pools {config.marconi_evict_pools}, admission {config.marconi_admission}"
    )
    cost = model_cost(hf_config, config)
    yield f"model: {cost.describe()}"
    kv_type = str(view.kv_cache_dtype)
    kv = int(model_config.dtype.itemsize) if kv_type == AUTO else KV_TYPES.get(kv_type)
    if cost.state_bytes and kv is not None:
        tp = max(view.tp_size // (view.dp_size if view.enable_dp_attention else 1), 1)
        sharded = cost_from_config(
            hf_config,
            tp_size=tp,
            kv_dtype_bytes=kv,
            temporal_dtype_bytes=state_element_bytes(view, hf_config),
            conv_dtype_bytes=int(mamba2_state_dtype(hf_config).conv.itemsize),
        )
        tokens = sharded.state_bytes / sharded.kv_bytes_per_token
        yield (
            f"memory of a rank: {sharded.state_bytes / 2**20:.2f} MiB a state, "
            f"{sharded.kv_bytes_per_token:,} bytes a token of KV: a state weighs as much as "
            f"{tokens:,.0f} tokens"
        )
    reason = _core_reason(view)
    yield "tree core: Rust" if reason is None else f"tree core: Python, which is slower: {reason}"
    yield from (f"limit: {limit}" for limit in limits(view, config))
    said = doctor_hints(server_args, config, model_config, cost)
    yield from (f"hint: {hint}" for hint in said)


def limits(view: Any, config: MarconiConfig) -> Iterator[str]:
    """What would work, but not as it does elsewhere."""
    if view.enable_hierarchical_cache:
        orders = config.marconi_evict_policy == 3 and not config.leaves_kv_to_sglang
        if not orders or view.enable_session_radix_cache:
            yield "the host forgets in SGLang's own order"
        if config.tunes:
            yield "the tuner simulates no host tier"
    if view.enable_unified_memory:
        yield ONE_MEMORY_LIMIT
    if config.policy_name == "marconi":
        yield "policy 2 is the paper's; on the traces that were measured policy 3 saved more"


def _core_reason(view: Any) -> str | None:
    from sglang.srt.mem_cache.mamba_radix.core import slower_core_reason
    from sglang.srt.mem_cache.mamba_radix.setup import lower_tier

    if view.enable_session_radix_cache:
        return "--enable-session-radix-cache is set"
    return slower_core_reason(
        lower_tier=lower_tier(view), shared_memory=bool(view.enable_unified_memory)
    )


def _with_model_folders(words: Sequence[str]) -> list[str]:
    """A model's folder for its ``config.json``, wherever that is given."""
    return [
        str(Path(word).parent) + os.sep if Path(word).name == "config.json" else word
        for word in words
    ]


def _refused(why: str) -> int:
    print(f"refused: {why}", file=sys.stderr)
    return 1
