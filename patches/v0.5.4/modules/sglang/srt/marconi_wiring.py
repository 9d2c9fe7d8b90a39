"""What the insertions into SGLang 0.5.4 call: options, checks, the cache, read-outs."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sglang.srt.mem_cache.marconi import arguments
from sglang.srt.mem_cache.marconi.config import FLAGS as ALL_FLAGS
from sglang.srt.mem_cache.marconi.config import MarconiConfig, MarconiConfigError

logger = logging.getLogger(__name__)

#: The options of this release: it has no tuner, and no admission but its own.
FLAGS = tuple(
    replace(flag, values=("sglang",)) if flag.field == "marconi_admission" else flag
    for flag in arguments.without_tuner(ALL_FLAGS)
    if not flag.sequences
)

#: Attribute of ServerArgs with the ``--max-mamba-cache-size`` that the operator gave.
STATES_ASKED = "max_mamba_cache_size_asked"


# -- server args


def add_fields(cls: type) -> type:
    """Give ServerArgs a field for every Marconi option, before it becomes a dataclass."""
    for flag in FLAGS:
        cls.__annotations__[flag.field] = "Any"
        setattr(cls, flag.field, None)
    return cls


def add_cli_args(parser: argparse.ArgumentParser) -> None:
    arguments.add_cli_args(parser, FLAGS)


def read_options(given: Mapping[str, Any]) -> MarconiConfig | None:
    """Options by field name, checked and completed; ``None`` where none is given.

    Raises:
        MarconiConfigError: an option is not allowed.
    """
    return MarconiConfig.from_options(given, FLAGS)


def config_of(server_args: Any) -> MarconiConfig | None:
    """The Marconi options of a ServerArgs, ``None`` where SGLang is to stay stock.

    Raises:
        MarconiConfigError: an option is not allowed.
    """
    return read_options({flag.field: getattr(server_args, flag.field, None) for flag in FLAGS})


def check_server_args(server_args: Any) -> None:
    """Refuse what Marconi cannot serve, before the model loads.

    Raises:
        MarconiConfigError: naming the flag, the value and what is allowed.
    """
    setattr(server_args, STATES_ASKED, server_args.max_mamba_cache_size)
    config = config_of(server_args)
    if config is None:
        return
    chosen = f"--marconi-evict-policy is {config.marconi_evict_policy}"
    for name in ("disable_radix_cache", "enable_hierarchical_cache", "enable_lmcache"):
        if getattr(server_args, name):
            raise MarconiConfigError(
                f"{chosen} but --{name.replace('_', '-')} is set; allowed is one of the two"
            )
    if os.environ.get("SGLANG_EXPERIMENTAL_CPP_RADIX_TREE") == "1":
        raise MarconiConfigError(
            f"{chosen} but SGLANG_EXPERIMENTAL_CPP_RADIX_TREE is 1; allowed is one of the two"
        )
    from sglang.srt.configs import Qwen3NextConfig
    from sglang.srt.mem_cache.marconi.attach.setup import model_cost

    hf_config = server_args.get_hf_config()
    if not isinstance(hf_config, Qwen3NextConfig):
        raise MarconiConfigError(
            f"{chosen} but the model {server_args.model_path!r} "
            f"({getattr(hf_config, 'architectures', None)}) is no Qwen3-Next; this SGLang has a "
            f"prefix cache with recurrent states for no other hybrid"
        )
    model_cost(hf_config, config)


def states_asked(server_args: Any) -> int | None:
    """``--max-mamba-cache-size`` as given, which SGLang overwrites; in state slots."""
    asked: int | None = getattr(server_args, STATES_ASKED, None)
    return asked


# -- the cache


def make_cache(scheduler: Any) -> Any:
    """The prefix cache of a scheduler whose server args name a policy."""
    from sglang.srt.mem_cache.marconi.attach.setup import make_setup
    from sglang.srt.mem_cache.marconi_radix_cache import MarconiRadixCache

    server_args = scheduler.server_args
    config = config_of(server_args)
    assert config is not None
    labels = None
    if server_args.enable_metrics and scheduler.current_scheduler_metrics_enabled():
        labels = {
            "model_name": str(server_args.served_model_name),
            "tp_rank": str(scheduler.tp_rank),
            "pp_rank": str(scheduler.pp_rank),
        }
    setup = make_setup(
        config,
        scheduler.model_config.hf_config,
        scheduler.req_to_token_pool,
        scheduler.token_to_kv_pool_allocator.get_kvcache(),
        labels,
    )
    cache = MarconiRadixCache(
        scheduler.req_to_token_pool,
        scheduler.token_to_kv_pool_allocator,
        scheduler.page_size,
        setup=setup,
    )
    logger.info(setup.announce(type(cache).__name__))
    return cache


def add_internal_state(state: dict[str, Any], cache: Any) -> None:
    """Put the counters of ``cache`` under ``marconi`` into what ``/server_info`` shows."""
    describe = getattr(cache, "marconi_state", None)
    if describe is not None:
        try:
            state["marconi"] = describe()
        except Exception as error:
            state["marconi"] = {"error": repr(error)}
