"""The list of SGLang functions that are replaced; the README gives the reason for each."""

from __future__ import annotations

from sglang_cpu_reference import (
    attention,
    conv,
    draft_attention,
    experts,
    host_tier,
    kimi_delta,
    layers,
    ssd,
    state_copy,
    unified_memory,
)
from sglang_cpu_reference.patching import Replacement

_KERNELS = "sglang.kernels.ops"
_LAYERS = "sglang.srt.layers"
_HOST_POOLS = "sglang.srt.mem_cache.pool_host"
_KDA = f"{_LAYERS}.attention.linear.kernels.kda_triton"
_MIXER = f"{_LAYERS}.attention.mamba.mamba"
_TORCH_BACKEND = f"{_LAYERS}.attention.torch_native_backend:TorchNativeAttnBackend"

REPLACEMENTS = (
    Replacement(
        f"{_KERNELS}.attention.fla.fused_norm_gate:FusedRMSNormGated.forward",
        layers.gated_rms_norm,
    ),
    Replacement(
        f"{_KERNELS}.attention.fla.layernorm_gated:RMSNorm.forward",
        layers.optionally_gated_rms_norm,
    ),
    Replacement(
        f"{_KERNELS}.elementwise.elementwise:fused_gate_sigmoid_mul",
        layers.gated_shared_expert,
    ),
    Replacement(
        f"{_KERNELS}.elementwise.elementwise:fused_gate_sigmoid_mul_add",
        layers.add_gated_shared_expert,
    ),
    Replacement(
        f"{_KERNELS}.mamba.mamba_state_scatter_triton:track_mamba_states_if_needed",
        state_copy.track_mamba_states_if_needed,
    ),
    Replacement(
        f"{_KERNELS}.mamba.mamba_state_scatter_triton:track_mamba_states_all_layers",
        state_copy.track_mamba_states_all_layers,
    ),
    Replacement(
        f"{_KERNELS}.mamba.mamba_state_scatter_triton:scatter_mamba_states_after_mtp_verify",
        state_copy.scatter_mamba_states_after_mtp_verify,
    ),
    Replacement(
        f"{_KERNELS}.mamba.triton_ops.ssd_combined:mamba_chunk_scan_combined",
        ssd.mamba_chunk_scan_combined,
    ),
    Replacement(
        f"{_KERNELS}.mamba.triton_ops.ssu_dispatch:TritonSSUBackend.__call__",
        ssd.selective_state_update,
    ),
    Replacement(f"{_KDA}:chunk_kda", kimi_delta.chunk_kda, fills_gap=True),
    Replacement(f"{_KDA}:fused_sigmoid_gating_delta_rule_update", kimi_delta.step, fills_gap=True),
    Replacement(
        f"{_KERNELS}.mamba.causal_conv1d_triton:causal_conv1d_fn",
        conv.with_its_parameters,
        wraps=True,
    ),
    Replacement(f"{_MIXER}:causal_conv1d_fn", conv.causal_conv1d_fn, fills_gap=True),
    Replacement(f"{_MIXER}:causal_conv1d_update", conv.causal_conv1d_update, fills_gap=True),
    Replacement(f"{_MIXER}:causal_conv1d_fn_triton", conv.causal_conv1d_fn, fills_gap=True),
    Replacement(f"{_MIXER}:causal_conv1d_update_triton", conv.causal_conv1d_update, fills_gap=True),
    *(
        Replacement(
            f"{_LAYERS}.attention.mamba.causal_conv1d:{name}",
            conv.with_its_parameters,
            wraps=True,
        )
        for name in ("causal_conv1d_fn", "causal_conv1d_update")
    ),
    Replacement(
        f"{_LAYERS}.moe.fused_moe_native:moe_forward_native",
        experts.moe_forward_native,
        wraps=True,
    ),
    Replacement(
        "sglang.srt.models.kimi_linear:KimiMoE.__init__", experts.scales_routes, wraps=True
    ),
    Replacement(f"{_TORCH_BACKEND}._run_sdpa_forward_extend", attention.extend),
    Replacement(f"{_TORCH_BACKEND}._run_sdpa_forward_decode", attention.decode),
    Replacement(
        "sglang.srt.platforms.interface:reject_out_of_tree_path",
        unified_memory.accept_unified_pools,
        wraps=True,
    ),
    Replacement(f"{_TORCH_BACKEND}.__init__", attention.translates_ids, wraps=True),
    Replacement(
        f"{_TORCH_BACKEND}.get_cpu_graph_seq_len_fill_value",
        attention.length_of_padding,
        fills_gap=True,
    ),
    Replacement(f"{_TORCH_BACKEND}.forward_extend", attention.extends, wraps=True),
    Replacement(f"{_TORCH_BACKEND}.forward_decode", attention.decodes, wraps=True),
    Replacement(
        "sglang.srt.speculative.draft_utils:DraftBackendFactory._create_backend",
        draft_attention.serves_torch_native,
        wraps=True,
    ),
    Replacement(f"{_HOST_POOLS}.common:_cuda_host_register", host_tier.register_host_memory),
    Replacement(
        "sglang.srt.mem_cache.l2_transfer:make_timing_event_pair", host_tier.transfer_events
    ),
    *(
        Replacement(
            f"{_HOST_POOLS}.{pool}.get_dummy_flat_data_page", host_tier.unpinned_page, wraps=True
        )
        for pool in (
            "mha:MHATokenToKVPoolHost",
            "mla:MLATokenToKVPoolHost",
            "mamba:MambaPoolHost",
        )
    ),
    *(
        Replacement(f"{_HOST_POOLS}.{module}:{name}", by, fills_gap=True)
        for module in ("mha", "mla", "mamba")
        for name, by in (
            ("transfer_kv_per_layer_direct_pf_lf", host_tier.load_layer),
            ("transfer_kv_all_layer_direct_lf_pf", host_tier.back_up_all_layers),
        )
    ),
)
