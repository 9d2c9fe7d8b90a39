"""What a live MambaRadixCache is made with on SGLang 0.5.23."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from sglang.srt.marconi_utils import ModelCost, PoolBytes
from sglang.srt.mem_cache.mamba_radix.launch_facts import start_up_hints
from sglang.srt.mem_cache.mamba_radix.shared_memory import is_shared
from sglang.srt.mem_cache.mamba_radix.tuning import make_tuning
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier, MarconiSetup, make_setup
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.runtime_context import get_memory, get_observability, get_parallel, get_serving


def setup_from_context(ctx: Any, config: MarconiConfig) -> MarconiSetup:
    """The setup of one scheduler process.

    Args:
        ctx: SGLang's ``TreeCacheBuildContext``.
    """
    labels = None
    if ctx.params.enable_metrics and _exports_metrics():
        labels = _metric_labels()
    setup = make_setup(
        config,
        ctx.model_config.hf_config,
        ctx.params.req_to_token_pool,
        ctx.params.token_to_kv_pool_allocator.get_kvcache(),
        labels,
        over_stages=partial(bytes_of_all_stages, group=ctx.params.pp_cache_group)
        if ctx.params.pp_size > 1
        else None,
    )
    cost = setup.cost
    assert isinstance(cost, ModelCost)
    setup = replace(
        setup,
        shared_memory=is_shared(ctx.params.token_to_kv_pool_allocator),
        lower_tier=lower_tier(get_memory()),
        hints=start_up_hints(ctx, config, cost),
    )
    if not (config.tunes or config.marconi_record):
        return setup
    return replace(setup, make_tuning=partial(make_tuning, ctx.params, config, cost))


def lower_tier(memory: Any) -> LowerTier | None:
    """What SGLang's options of memory put below the device."""
    if memory.enable_unified_cache_external_linker:
        return LowerTier.LINKER
    if not memory.enable_hierarchical_cache:
        return None
    keeps = memory.hicache_host_memory_mode != "buffer_only"
    return LowerTier.HOST if keeps else LowerTier.BUFFER


def bytes_of_all_stages(pools: PoolBytes, group: Any) -> PoolBytes:
    """Bytes of a token and a state over all pipeline stages, the same on each of them.

    Stages hold different layers, so their own pools would price a prefix differently and evict
    differently. Every stage calls it once, while its cache is made.

    Args:
        group: SGLang's CPU group of the stages.
    """
    numbers = torch.tensor([pools.kv_bytes_per_token, pools.state_bytes], dtype=torch.int64)
    torch.distributed.all_reduce(numbers, group=group)
    return PoolBytes(*numbers.tolist())


def _exports_metrics() -> bool:
    """One rank speaks for all that serve the same requests, as in SGLang's own metrics."""
    parallel = get_parallel()
    speaks = parallel.attn_tp_rank == 0 and parallel.attn_cp_rank == 0
    return speaks or bool(get_observability().enable_metrics_for_all_schedulers)


def _metric_labels() -> dict[str, str]:
    """Who this process is, under the names that SGLang's own metrics use."""
    parallel = get_parallel()
    labels = {
        # The server args have no name unless one was given.
        "model_name": str(get_serving().served_model_name),
        "tp_rank": str(parallel.tp_rank),
        "pp_rank": str(parallel.pp_rank),
    }
    if parallel.dp_rank is not None:
        labels["dp_rank"] = str(parallel.dp_rank)
    return labels
