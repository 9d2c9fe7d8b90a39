"""Wires Marconi into SGLang 0.5.23: server args, the cache, read-outs, and a check of itself.

In every process SGLang finds this module by the entry point ``sglang.srt.plugins``, or is patched
to call it. Without a Marconi option every hook hands through to stock. With one, an incomplete
wiring is an error before the model loads, because SGLang only logs a plugin that fails.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import logging
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from sglang.srt.environ import envs
from sglang.srt.mem_cache.marconi import arguments
from sglang.srt.mem_cache.marconi.config import FLAGS, MarconiConfig, MarconiConfigError
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

logger = logging.getLogger(__name__)

SUPPORTED_SGLANG = "0.5.23"

#: Where the checked options travel: a bookkeeping attribute of ServerArgs, which is pickled with it
#: to every scheduler process while its fields are sealed.
OPTIONS_ATTRIBUTE = "_marconi_options"

_ENGINE_MODULE = "sglang.srt.entrypoints.engine"


@dataclass(frozen=True)
class Hook:
    """One place where SGLang is hooked.

    Attributes:
        target: dotted path of the function.
        parameters: names of its leading parameters; others mean that the target moved.
    """

    target: str
    kind: HookType
    function: Callable[..., Any]
    parameters: tuple[str, ...]


# -- server args


def add_cli_args(_result: None, parser: argparse.ArgumentParser) -> None:
    arguments.add_cli_args(parser)


def from_cli_args(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    given = {flag.field: getattr(args, flag.field, None) for flag in FLAGS}
    return attach_options(original(cls, args), given)


def attach_options(server_args: Any, given: dict[str, Any]) -> Any:
    """Put checked Marconi options on a ServerArgs, which is returned.

    Raises:
        MarconiConfigError: a value is not allowed, or this SGLang cannot be wired.
    """
    config = MarconiConfig.from_options(given)
    if config is not None:
        _require_wiring()
        setattr(server_args, OPTIONS_ATTRIBUTE, config)
    return server_args


def config_of(server_args: Any) -> MarconiConfig | None:
    """The Marconi options of a ServerArgs, ``None`` where SGLang is to stay stock."""
    config = getattr(server_args, OPTIONS_ATTRIBUTE, None)
    assert config is None or isinstance(config, MarconiConfig)
    return config


def accept_engine_keywords(*_: Any, **__: Any) -> None:
    """Let ``sglang.Engine(marconi_...=...)`` through, once the engine's module is loaded.

    The engine builds its ServerArgs from keywords by a class attribute, after it loaded plugins.
    """
    module = sys.modules.get(_ENGINE_MODULE)
    engine = getattr(module, "Engine", None)
    make = getattr(engine, "server_args_class", None)
    if engine is None or make is None or getattr(make, "takes_marconi_options", False):
        return

    @functools.wraps(make, updated=())
    def make_server_args(*args: Any, **kwargs: Any) -> Any:
        given = {flag.field: kwargs.pop(flag.field, None) for flag in FLAGS}
        return attach_options(make(*args, **kwargs), given)

    make_server_args.takes_marconi_options = True  # type: ignore[attr-defined]
    engine.server_args_class = staticmethod(make_server_args)


def resolved_dict(result: dict[str, Any], server_args: Any) -> dict[str, Any]:
    config = config_of(server_args)
    return result if config is None else {**result, **config.as_dict()}


# -- checks before the model loads


def check_server_args(_result: None, server_args: Any) -> None:
    """Refuse what Marconi cannot serve.

    Raises:
        MarconiConfigError: naming the flag, the value and what is allowed.
    """
    config = config_of(server_args)
    if config is None:
        return
    _require_wiring()
    from sglang.srt.arg_groups.model_override_base import model_config_of
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.configs.hybrid_arch import mambaish_config

    chosen = f"--marconi-evict-policy is {config.marconi_evict_policy}"
    view = resolving_view(server_args)
    _check_radix_cache(server_args, view, chosen)
    for name in ("enable_lmcache", "enable_flexkv"):
        if getattr(view, name, False):
            raise MarconiConfigError(
                f"{chosen} but --{name.replace('_', '-')} is set; allowed is one of the two"
            )
    backend = getattr(view, "radix_cache_backend", None)
    if backend:
        raise MarconiConfigError(
            f"{chosen} but --radix-cache-backend is {backend!r}; allowed with Marconi is "
            f"SGLang's own backend, so leave the flag out"
        )
    kv_order = getattr(view, "radix_eviction_policy", "lru")
    if kv_order != "lru" and not config.leaves_kv_to_sglang:
        raise MarconiConfigError(
            f"{chosen}, which orders KV too, but --radix-eviction-policy is {kv_order!r}; allowed "
            f"is lru, or --marconi-evict-pools state"
        )
    if config.tunes:
        _check_one_group(view)
        if getattr(view, "enable_unified_memory", False):
            raise MarconiConfigError(
                "--marconi-eff-weight is auto but --enable-unified-memory is set, which the tuner "
                "does not simulate; allowed with it are a number, or --disable-marconi-autotune"
            )
    _check_record(config, getattr(view, "pp_size", 1) or 1)
    chunk = getattr(view, "chunked_prefill_size", None)
    if config.marconi_admission == "judicious" and chunk is not None and chunk <= 0:
        raise MarconiConfigError(
            f"--marconi-admission is judicious but --chunked-prefill-size is {chunk}, so prefill "
            f"cannot be cut at a branch point; allowed with it is a number > 0"
        )
    model_config = model_config_of(server_args)
    if mambaish_config(model_config) is None:
        architectures = getattr(model_config.hf_config, "architectures", None)
        raise MarconiConfigError(
            f"{chosen} but the model {model_config.model_path!r} ({architectures}) has no "
            f"recurrent state; allowed are hybrid models (attention and recurrent layers)"
        )
    from sglang.srt.mem_cache.marconi.attach.setup import model_cost

    model_cost(model_config.hf_config, config)


def _check_radix_cache(server_args: Any, view: Any, chosen: str) -> None:
    """There is a prefix cache to choose victims in, and its states are SGLang's own.

    Args:
        view: the server args as SGLang resolved them, which turns the cache off by itself too.

    Raises:
        MarconiConfigError: there is none, or another component keeps the states.
    """
    if getattr(view, "disable_radix_cache", False):
        if getattr(server_args, "disable_radix_cache", False):
            why = "--disable-radix-cache is set; allowed is one of the two"
        elif getattr(view, "disaggregation_mode", "null") == "decode":
            why = (
                "--disaggregation-mode is 'decode', where SGLang keeps no prefix cache; allowed "
                "with it is --disaggregation-decode-enable-radix-cache, or no --marconi flag on "
                "decode servers"
            )
        else:
            why = "SGLang turns the prefix cache off for this model and these flags"
        raise MarconiConfigError(f"{chosen} but {why}")
    if envs.SGLANG_USE_MLX.get():
        raise MarconiConfigError(
            f"{chosen} but SGLANG_USE_MLX is set, whose recurrent states are kept by MLX; allowed "
            f"is one of the two"
        )


def _check_record(config: MarconiConfig, pp_size: int) -> None:
    """Requests can be appended, once each, to the file that is named.

    Raises:
        MarconiConfigError: they cannot.
    """
    if config.marconi_record is None:
        return
    if pp_size > 1:
        raise MarconiConfigError(
            f"--marconi-record is {config.marconi_record!r} but --pp-size is {pp_size}, and every "
            f"stage would record the same requests; allowed with it is --pp-size 1"
        )
    try:
        open(config.marconi_record, "ab").close()
    except OSError as error:
        raise MarconiConfigError(
            f"--marconi-record is {config.marconi_record!r}, which cannot be written ({error}); "
            f"allowed is a file in a folder that exists"
        ) from error


def _check_one_group(view: Any) -> None:
    """The tuner's answers travel over the tensor-parallel group: all that evict must be in it.

    Raises:
        MarconiConfigError: pipeline stages, or context-parallel ranks under attention DP, are not.
    """
    for name in ("pp_size", "attn_cp_size"):
        size = getattr(view, name, 1) or 1
        if size > 1 and (name == "pp_size" or getattr(view, "enable_dp_attention", False)):
            raise MarconiConfigError(
                f"--marconi-eff-weight is auto but --{name.replace('_', '-')} is {size}, whose "
                f"ranks cannot agree on a tuned value; allowed with it are a number, or "
                f"--disable-marconi-autotune"
            )


# -- the cache


def create_unified_radix_cache(
    original: Callable[..., Any], ctx: Any, *, cache_class: Any = None
) -> Any:
    config = config_of(ctx.server_args)
    if config is None or ctx.params.disable or not ctx.is_hybrid_ssm:
        return original(ctx, cache_class=cache_class)
    from sglang.srt.mem_cache.mamba_radix.setup import setup_from_context
    from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache

    if cache_class is not None:
        raise MarconiConfigError(
            f"--marconi-evict-policy is {config.marconi_evict_policy} but {cache_class.__name__} "
            f"is to be the radix cache; allowed is one of the two"
        )
    setup = setup_from_context(ctx, config)
    cache = original(ctx, cache_class=functools.partial(MambaRadixCache, setup=setup))
    logger.info(setup.announce(type(cache.tree_core).__name__))
    for hint in setup.hints:
        logger.info("Marconi hint: %s", hint)
    return cache


# -- prefill


def select_prefill_admission(
    original: Callable[..., Any], adder: Any, req: Any, **arguments: Any
) -> Any:
    admission = getattr(adder.tree_cache, "admission", None)
    shape = original(adder, req, **arguments)
    if admission is None:
        return shape
    return admission.cuts.shape(
        adder,
        req,
        shape,
        chunking=arguments.get("has_chunked_req", False),
        align=arguments.get("truncation_align_size"),
    )


def add_chunked_req(original: Callable[..., Any], adder: Any, req: Any) -> Any:
    admission = getattr(adder.tree_cache, "admission", None)
    if admission is not None:
        admission.cuts.limit(adder, req)
    return original(adder, req)


def calc_priority(
    _result: None, schedule: Any, waiting_queue: Any, *_args: Any, **_keywords: Any
) -> None:
    note = getattr(schedule.tree_cache, "note_queue", None)
    if note is not None:
        note(waiting_queue, matched=schedule.waiting_queue_prefix_matched(waiting_queue))


# -- read-outs


def get_internal_state(original: Callable[..., Any], controller: Any, *args: Any) -> Any:
    output = original(controller, *args)
    describe = getattr(controller.scheduler.tree_cache, "marconi_state", None)
    if describe is not None:
        try:
            output.internal_state["marconi"] = describe()
        except Exception as error:
            output.internal_state["marconi"] = {"error": repr(error)}
    return output


# -- registration and self-check

HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.server_args.ServerArgs.add_cli_args",
        HookType.AFTER,
        add_cli_args,
        ("parser",),
    ),
    Hook(
        "sglang.srt.server_args.ServerArgs.from_cli_args",
        HookType.AROUND,
        from_cli_args,
        ("cls", "args"),
    ),
    Hook(
        "sglang.srt.server_args.ServerArgs.resolved_dict",
        HookType.AFTER,
        resolved_dict,
        ("self",),
    ),
    Hook(
        "sglang.srt.server_args.ServerArgs.check_server_args",
        HookType.AFTER,
        check_server_args,
        ("self",),
    ),
    Hook("sglang.srt.plugins.load_plugins", HookType.AFTER, accept_engine_keywords, ()),
    Hook(
        "sglang.srt.mem_cache.registry.create_unified_radix_cache",
        HookType.AROUND,
        create_unified_radix_cache,
        ("ctx", "cache_class"),
    ),
    Hook(
        "sglang.srt.managers.schedule_policy.PrefillAdder._select_prefill_admission",
        HookType.AROUND,
        select_prefill_admission,
        ("self", "req"),
    ),
    Hook(
        "sglang.srt.managers.schedule_policy.PrefillAdder.add_chunked_req",
        HookType.AROUND,
        add_chunked_req,
        ("self", "req"),
    ),
    Hook(
        "sglang.srt.managers.schedule_policy.SchedulePolicy.calc_priority",
        HookType.AFTER,
        calc_priority,
        ("self", "waiting_queue"),
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.internal_state."
        "SchedulerInternalStateController.get_internal_state",
        HookType.AROUND,
        get_internal_state,
        ("self", "recv_req"),
    ),
)

_problems: list[str] = []


def register() -> None:
    """Entry point: register all hooks, and remember what stands in the way of any.

    A second call, where a patched tree and the entry point both name it, registers nothing twice.
    """
    _problems.clear()
    _problems.extend(find_problems())
    for hook in HOOKS:
        registered = HookRegistry._hooks.get(hook.target, ())
        if all(function is not hook.function for _, function, _ in registered):
            HookRegistry.register(hook.target, hook.function, hook.kind)
    accept_engine_keywords()


def find_problems() -> list[str]:
    """Why this SGLang cannot be wired: its version, and every target that moved or changed."""
    problems = []
    version = metadata.version("sglang")
    if version != SUPPORTED_SGLANG:
        problems.append(f"SGLang is {version}; allowed is {SUPPORTED_SGLANG}")
    for hook in HOOKS:
        try:
            function = inspect.unwrap(_raw(hook.target))
            found = tuple(inspect.signature(function).parameters)
        except Exception as error:
            problems.append(f"hook target {hook.target} is not there ({error!r})")
            continue
        if found[: len(hook.parameters)] != hook.parameters:
            problems.append(
                f"hook target {hook.target} takes {found}; expected is {hook.parameters}"
            )
    return problems


def _raw(target: str) -> Any:
    """A target as it is stored, so that a class method keeps its ``cls`` parameter."""
    path, name = target.rsplit(".", 1)
    owner = pkgutil.resolve_name(path)
    found = inspect.getattr_static(owner, name)
    return getattr(found, "__func__", found)


def _require_wiring() -> None:
    unapplied = [
        f"hook target {hook.target} was not applied"
        for hook in HOOKS
        if hook.target not in HookRegistry._patched
    ]
    problems = _problems + unapplied
    if problems:
        raise MarconiConfigError(
            "a --marconi flag is set, but this SGLang cannot be wired: " + "; ".join(problems)
        )
