"""What a live MambaRadixCache is made with on SGLang 0.5.23."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.mamba_radix_shared import is_shared
from sglang.srt.mem_cache.mamba_radix_tuning import make_tuning
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.setup import MarconiSetup, make_setup
from sglang.srt.runtime_context import get_memory


def setup_from_context(ctx: Any, config: MarconiConfig) -> MarconiSetup:
    """The setup of one scheduler process.

    Args:
        ctx: SGLang's ``TreeCacheBuildContext``.
    """
    labels = None
    if ctx.params.enable_metrics and _exports_metrics(ctx):
        labels = {
            "model_name": str(ctx.server_args.served_model_name),
            "tp_rank": str(ctx.tp_rank),
            "pp_rank": str(ctx.params.pp_rank),
        }
    setup = make_setup(
        config,
        ctx.model_config.hf_config,
        ctx.params.req_to_token_pool,
        ctx.params.token_to_kv_pool_allocator.get_kvcache(),
        labels,
    )
    lower = ctx.enable_hierarchical_cache or get_memory().enable_unified_cache_external_linker
    setup = replace(
        setup,
        shared_memory=is_shared(ctx.params.token_to_kv_pool_allocator),
        has_lower_tier=bool(lower),
    )
    if not (config.tunes or config.marconi_record):
        return setup
    assert isinstance(setup.cost, ModelCost)
    return replace(setup, make_tuning=partial(make_tuning, ctx.params, config, setup.cost))


def _exports_metrics(ctx: Any) -> bool:
    """One tensor-parallel rank speaks for all, unless SGLang is asked for every rank's metrics."""
    return ctx.tp_rank == 0 or bool(ctx.server_args.enable_metrics_for_all_schedulers)
