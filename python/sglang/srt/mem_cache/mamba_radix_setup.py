"""What a live MambaRadixCache is made with: the cost of the model that is served, and exporters."""

from __future__ import annotations

from functools import partial
from typing import Any

from sglang.srt.marconi_utils import ModelCost, cost_from_config, pool_bytes
from sglang.srt.mem_cache.mamba_radix_cache import MarconiSetup
from sglang.srt.mem_cache.mamba_radix_tuning import make_tuning
from sglang.srt.mem_cache.marconi.config import MarconiConfig, MarconiConfigError
from sglang.srt.mem_cache.marconi.metrics import PrometheusExporter
from sglang.srt.mem_cache.marconi.savings import SAVINGS


def model_cost(model_config: Any, config: MarconiConfig) -> ModelCost:
    """FLOPs of a hybrid model's prefixes, from its config; zero where only LRU is asked for.

    Raises:
        MarconiConfigError: there is no cost model for it and the policy needs one.
    """
    try:
        return cost_from_config(model_config.hf_config)
    except ValueError as error:
        if config.marconi_evict_policy == 1:
            return ModelCost(a=0, b=0, kv_bytes_per_token=0, state_bytes=0, name="unknown FLOPs")
        raise MarconiConfigError(
            f"--marconi-evict-policy is {config.marconi_evict_policy} but FLOPs of this model are "
            f"unknown ({error}); allowed with it is --marconi-evict-policy 1"
        ) from error


def make_setup(ctx: Any, config: MarconiConfig) -> MarconiSetup:
    """The setup of one scheduler process, with the bytes of its own pools (its shard's).

    Args:
        ctx: SGLang's ``TreeCacheBuildContext``.
    """
    pools = pool_bytes(
        ctx.params.req_to_token_pool, ctx.params.token_to_kv_pool_allocator.get_kvcache()
    )
    cost = model_cost(ctx.model_config, config).with_pool_bytes(
        pools.kv_bytes_per_token, pools.state_bytes
    )
    exporter = None
    if ctx.params.enable_metrics and _exports_metrics(ctx):
        exporter = PrometheusExporter(
            {
                "model_name": str(ctx.server_args.served_model_name),
                "tp_rank": str(ctx.tp_rank),
                "pp_rank": str(ctx.params.pp_rank),
            }
        )
    return MarconiSetup(
        config=config,
        cost=cost,
        savings=SAVINGS[config.marconi_savings](cost),
        description=cost.describe(),
        on_request=exporter,
        make_tuning=partial(make_tuning, ctx.params, config, cost) if config.tunes else None,
    )


def _exports_metrics(ctx: Any) -> bool:
    """One tensor-parallel rank speaks for all, unless SGLang is asked for every rank's metrics."""
    return ctx.tp_rank == 0 or bool(ctx.server_args.enable_metrics_for_all_schedulers)
