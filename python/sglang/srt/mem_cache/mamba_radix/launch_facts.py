"""Gathers what a launch's hints are about, from SGLang 0.5.23's flags, model and pools."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sglang.srt.arg_groups.overrides import resolved_view, resolving_view
from sglang.srt.marconi_utils import ModelCost, pool_bytes
from sglang.srt.mem_cache.mamba_radix.shared_memory import is_shared
from sglang.srt.mem_cache.marconi.advice.launch import LaunchFacts, hints
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.costs.state_types import state_types
from sglang.srt.runtime_context import get_memory, get_parallel

logger = logging.getLogger(__name__)

#: What SGLang's unified pools hold KV as.
_PLAIN_KV = ("auto", "bf16", "bfloat16", "fp8_e4m3", "fp8_e5m2")
#: They lay rows out in units of so many bytes.
_ROW_BYTES = 16
#: Refused with unified memory by what resolves the model's own flags.
_TWO_POOLS_ONLY = ("Qwen4ExpForConditionalGeneration",)


def start_up_hints(ctx: Any, config: MarconiConfig, cost: ModelCost) -> tuple[str, ...]:
    """What the launch could do better, in the one process that speaks for the whole server.

    Args:
        ctx: SGLang's ``TreeCacheBuildContext``.
        cost: FLOPs and layers of the model, over all ranks.
    """

    def facts() -> LaunchFacts | None:
        parallel = get_parallel()
        if parallel.tp_rank or parallel.pp_rank or parallel.dp_rank:
            return None
        memory = get_memory()
        return _facts(ctx.server_args, config, ctx.model_config, cost, memory, ctx.params)

    return _hints(facts)


def doctor_hints(
    server_args: Any, config: MarconiConfig, model_config: Any, cost: ModelCost
) -> tuple[str, ...]:
    """The same before a launch, as far as it is known without pools.

    Args:
        server_args: resolved.
        model_config: SGLang's ``ModelConfig``.
    """

    def facts() -> LaunchFacts:
        memory = resolving_view(server_args)
        return _facts(server_args, config, model_config, cost, memory, None)

    return _hints(facts)


def _hints(facts: Callable[[], LaunchFacts | None]) -> tuple[str, ...]:
    """Nothing where the facts cannot be gathered: a hint is worth no complaint."""
    try:
        found = facts()
        return () if found is None else hints(found)
    except Exception:
        logger.debug("Marconi: what could be hinted at is not known", exc_info=True)
        return ()


def _facts(
    server_args: Any,
    config: MarconiConfig,
    model_config: Any,
    cost: ModelCost,
    memory: Any,
    params: Any,
) -> LaunchFacts:
    """Facts of a launch.

    Args:
        memory: has SGLang's options of memory, as they are in force.
        params: SGLang's ``CacheInitParams``; ``None`` before there are pools.
    """
    return LaunchFacts(
        policy=config.marconi_evict_policy,
        orders_kv=not config.leaves_kv_to_sglang,
        could_share_memory=could_share_memory(server_args, model_config, cost),
        state_bytes=_float32_and_bfloat16(server_args, model_config, cost),
        host_share=_host_share(memory, params),
    )


def could_share_memory(server_args: Any, model_config: Any, cost: ModelCost) -> bool:
    """Whether SGLang would serve this launch with ``--enable-unified-memory``, which it lacks.

    SGLang's own checks are asked. What it refuses later, what it serves with less than was asked
    for, and what was never tried with the flag is left out.
    """
    from sglang.srt.arg_groups.kv_cache_hook import (
        handle_page_major_kv_layout,
        handle_unified_memory_pool,
    )
    from sglang.srt.arg_groups.model_override_base import use_mla_backend
    from sglang.srt.arg_groups.resolution_hooks import run_hook
    from sglang.srt.platforms import current_platform
    from sglang.srt.platforms.interface import reject_out_of_tree_path

    view = resolving_view(server_args)
    untried = (
        view.enable_unified_memory
        or view.enable_hierarchical_cache
        or view.enable_int8_mamba_checkpoint
        or view.enable_linear_replayssm
        or view.enable_linear_replayssm_spec
        or view.enable_kv_cache_sharding
        or view.speculative_algorithm is not None
        or view.disaggregation_mode != "null"
        or str(view.kv_cache_dtype) not in _PLAIN_KV
        # There are three kinds of memory then, and SGLang decides which side gives.
        or model_config.is_hybrid_swa
        or cost.architecture in _TWO_POOLS_ONLY
    )
    if untried:
        return False
    widths = (model_config.head_dim, model_config.v_head_dim)
    if any(width % _ROW_BYTES for width in widths) and not use_mla_backend(server_args):
        return False
    tried = _Tried(resolved_view(server_args))
    if not resolving_view(tried).enable_unified_memory:
        return False
    try:
        run_hook(handle_unified_memory_pool, tried)
        run_hook(handle_page_major_kv_layout, tried)
        reject_out_of_tree_path(current_platform, subsystem="the unified memory pool")
    except (AssertionError, NotImplementedError, ValueError):
        return False
    return True


class _Tried:
    """A launch's arguments with ``--enable-unified-memory``; what is resolved for it stays here.

    Args:
        arguments: a snapshot of the launch's own, as resolved.
    """

    def __init__(self, arguments: Any) -> None:
        self._arguments = arguments
        # Without the second SGLang's check would turn a kind of CUDA graphs off, for the launch.
        given = {"enable_unified_memory": True, "cuda_graph_config": None}
        self._resolved_overrides: list[tuple[str, dict[str, Any]]] = [("sglang-marconi", given)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arguments, name)


def state_element_bytes(view: Any, hf_config: Any) -> int:
    """Bytes of one number of a cached state; the scales of compressed ones are left out.

    Args:
        view: the server args, as resolved.
        hf_config: the model's config, as transformers reads it.
    """
    import torch
    from sglang.srt.configs.mamba_utils import mamba2_state_dtype

    if view.enable_int8_mamba_checkpoint:
        return 1
    if view.mamba_ssm_dtype is not None:
        return int(getattr(torch, view.mamba_ssm_dtype).itemsize)
    return int(mamba2_state_dtype(hf_config).temporal.itemsize)


def _float32_and_bfloat16(
    server_args: Any, model_config: Any, cost: ModelCost
) -> tuple[int, int] | None:
    """Bytes of a state in both types, where it is in the first and may be in the second.

    Other kernels than Triton's can want one of the two, by the GPU.
    """
    view = resolving_view(server_args)
    backends = {
        view.mamba_backend,
        view.linear_attn_backend,
        view.linear_attn_decode_backend,
        view.linear_attn_prefill_backend,
        view.linear_attn_verify_backend,
    }
    if backends - {None, "triton"} or view.enable_linear_replayssm_spec:
        return None
    if state_element_bytes(view, model_config.hf_config) != 4:
        return None
    sizes = {kind.name: kind.bytes for kind in state_types(cost)}
    return (sizes["float32"], sizes["bfloat16"]) if sizes else None


def _host_share(memory: Any, params: Any) -> float | None:
    """Bytes of the host tier to a byte of the device's pools; ``None``: no tier, or not known."""
    if not memory.enable_hierarchical_cache or memory.hicache_host_memory_mode == "buffer_only":
        return None
    if memory.hicache_size <= 0:
        return None if memory.hicache_ratio is None else float(memory.hicache_ratio)
    if params is None or is_shared(params.token_to_kv_pool_allocator):
        return None
    pool, allocator = params.req_to_token_pool, params.token_to_kv_pool_allocator
    each = pool_bytes(pool, allocator.get_kvcache())
    device = allocator.size * each.kv_bytes_per_token + pool.mamba_allocator.size * each.state_bytes
    return float(memory.hicache_size * 10**9 / device)
