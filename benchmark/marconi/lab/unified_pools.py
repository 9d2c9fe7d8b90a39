"""SGLang's unified memory without a server: states and KV slots that share one small buffer."""

from __future__ import annotations

import torch
from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateDType, Mamba2StateShape
from sglang.srt.mem_cache.allocator.unified_mamba import UnifiedMambaTokenToKVPoolAllocator
from sglang.srt.mem_cache.unified_memory_pool import (
    UnifiedHybridReqToTokenPool,
    init_unified_mamba_pools,
)

#: Channels of keys and of values: a KV slot takes 8 bytes a channel. A state takes any multiple of
#: 4 bytes, so that the ratio of the two is met to 1/32 of a KV slot.
KV_CHANNELS = 16
KV_BYTES = 8 * KV_CHANNELS


def make_unified_pools(
    kv_tokens: int,
    state_slots: int,
    state_tokens: float,
    device: str = "cpu",
    context_tokens: int = 64,
) -> tuple[UnifiedHybridReqToTokenPool, UnifiedMambaTokenToKVPoolAllocator]:
    """Pools that share the bytes of ``kv_tokens`` KV slots and ``state_slots`` states.

    Args:
        state_tokens: KV slots that a state weighs as much as; at least 1.
    """
    # One number of the convolution takes 4 bytes at most, and there are 8.
    numbers = max(round((state_tokens * KV_BYTES - 32) / 4), 1)
    states = Mamba2CacheParams(
        shape=Mamba2StateShape.create(
            tp_world_size=1,
            intermediate_size=6,
            n_groups=1,
            num_heads=1,
            head_dim=numbers,
            state_size=1,
            conv_kernel=2,
        ),
        layers=[0],
        dtype=Mamba2StateDType(conv=torch.float32, temporal=torch.float32),
    )
    state_bytes = 32 + 4 * numbers
    bundle = init_unified_mamba_pools(
        device=device,
        kv_cache_dtype=torch.float32,
        head_num=1,
        head_dim=KV_CHANNELS,
        page_size=1,
        start_layer=0,
        end_layer=2,
        is_draft_worker=False,
        use_mla_backend=False,
        mamba_layer_ids=[0],
        full_attention_layer_ids=[1],
        mamba2_cache_params=states,
        model_context_len=context_tokens,
        extra_max_context_len=0,
        max_total_num_tokens=kv_tokens,
        max_mamba_cache_size=state_slots,
        max_num_reqs=8,
        enable_memory_saver=False,
        enable_mamba_extra_buffer=False,
        enable_mamba_extra_buffer_lazy=False,
        speculative_num_draft_tokens=None,
        disable_overlap_schedule=True,
        need_sort=False,
        lazy_compaction=True,
        # SGLang keeps one state's bytes for padding; they come on top.
        unified_total_bytes=kv_tokens * KV_BYTES + state_bytes,
    )
    return bundle.req_to_token_pool, bundle.token_to_kv_pool_allocator
