"""Mamba hybrids: Falcon-H1, Nemotron-H, Granite 4, and Mamba without attention."""

from __future__ import annotations

from sglang.srt.mem_cache.marconi.costs import layers
from sglang.srt.mem_cache.marconi.costs.families.shared import (
    ATTENTION,
    RECURRENT,
    dense_mlp,
    grouped_query_attention,
    layer_kinds,
    pick,
    total,
)
from sglang.srt.mem_cache.marconi.costs.fields import Fields
from sglang.srt.mem_cache.marconi.costs.layers import LayerCost


def falcon_h1(f: Fields, tp_size: int) -> LayerCost:
    """Falcon-H1 (upstream ``falcon_h1.py``): Mamba-2 and attention side by side in every layer."""
    hidden = f.number("hidden_size")
    inner = f.number("mamba_d_ssm", default=f.number("mamba_expand", default=2) * hidden)
    mixer = layers.mamba2(
        hidden,
        inner,
        f.number("mamba_n_heads"),
        f.number("mamba_n_groups"),
        f.number("mamba_d_state"),
        f.number("mamba_d_conv"),
        tp_size=tp_size,
    )
    layer = mixer + grouped_query_attention(f, tp_size) + dense_mlp(f)
    return total([layer] * f.number("num_hidden_layers"))


_NEMOTRON_BLOCKS = {
    "M": "mamba",
    "*": "attention",
    "-": "mlp",
    "E": "moe",
    "mamba": "mamba",
    "attention": "attention",
    "mlp": "mlp",
    "moe": "moe",
    "linear_attention": "mamba",
    "full_attention": "attention",
}


def nemotron_h(f: Fields, tp_size: int) -> LayerCost:
    """Nemotron-H and its Puzzle and multimodal forms (upstream ``nemotron_h.py``).

    Each block is one of Mamba-2, attention, MLP or MoE. MLPs and experts have no gate. Puzzle gives
    every block sizes of its own.
    """
    pattern = f.get("layers_block_type", "layer_types", "hybrid_override_pattern", default="")
    sizes = f.get("block_configs") or [{}] * len(pattern)
    kinds = [pick(_NEMOTRON_BLOCKS, kind, f) for kind in pattern]
    return total(
        [
            _nemotron_block(f.override(own), kind, tp_size)
            for kind, own in zip(kinds, sizes, strict=True)
        ]
    )


def _nemotron_block(f: Fields, kind: str, tp_size: int) -> LayerCost:
    hidden = f.number("hidden_size")
    if kind == "mamba":
        heads = f.number("mamba_num_heads")
        return layers.mamba2(
            hidden,
            heads * f.number("mamba_head_dim"),
            heads,
            f.number("n_groups", "mamba_n_groups"),
            f.number("ssm_state_size"),
            f.number("conv_kernel", "mamba_d_conv"),
            tp_size=tp_size,
        )
    if kind == "attention":
        return grouped_query_attention(f, tp_size)
    if kind == "mlp":
        return layers.mlp(hidden, f.number("intermediate_size"), gated=False)
    latent = f.get("moe_latent_size")
    shared = f.number("n_shared_experts", default=0)
    return layers.mixture_of_experts(
        hidden,
        f.number("n_routed_experts"),
        f.number("num_experts_per_tok"),
        f.number("moe_intermediate_size"),
        shared_intermediate=shared * f.number("moe_shared_expert_intermediate_size", default=0),
        latent=None if latent is None else int(latent),
        gated=False,
    )


def granite_hybrid(f: Fields, tp_size: int) -> LayerCost:
    """Granite 4 hybrid (upstream ``granitemoehybrid.py``): Mamba-2 or attention, then MoE and MLP.

    The shared MLP is there in every layer, routed experts only if ``num_local_experts`` is not 0.
    """
    hidden = f.number("hidden_size")
    mixers = {
        ATTENTION: grouped_query_attention(f, tp_size),
        RECURRENT: layers.mamba2(
            hidden,
            f.number("mamba_expand") * hidden,
            f.number("mamba_n_heads"),
            f.number("mamba_n_groups"),
            f.number("mamba_d_state"),
            f.number("mamba_d_conv"),
            tp_size=tp_size,
        ),
    }
    shared = f.number("shared_intermediate_size", default=0)
    experts = f.number("num_local_experts", default=0)
    channel = layers.mlp(hidden, shared)
    if experts:
        channel = layers.mixture_of_experts(
            hidden,
            experts,
            f.number("num_experts_per_tok"),
            f.number("intermediate_size"),
            shared_intermediate=shared,
        )
    return total([mixers[kind] + channel for kind in layer_kinds(f)])


def mamba2_pure(f: Fields, tp_size: int) -> LayerCost:
    """Mamba-2 without attention, such as Mamba-Codestral (upstream ``mamba2.py``)."""
    heads = f.number("num_heads")
    layer = layers.mamba2(
        f.number("hidden_size"),
        heads * f.number("head_dim"),
        heads,
        f.number("n_groups"),
        f.number("state_size"),
        f.number("conv_kernel"),
        tp_size=tp_size,
    )
    return total([layer] * f.number("num_hidden_layers"))


def mamba1_pure(f: Fields, tp_size: int) -> LayerCost:
    """Mamba and Falcon-Mamba, without attention (upstream ``mamba.py``, ``falcon_mamba.py``)."""
    hidden = f.number("hidden_size")
    rank = f.get("time_step_rank")
    layer = layers.mamba1(
        hidden,
        f.number("intermediate_size", default=f.number("expand", default=2) * hidden),
        f.number("state_size"),
        rank if isinstance(rank, int) else -(-hidden // 16),
        f.number("conv_kernel"),
        tp_size=tp_size,
    )
    return total([layer] * f.number("num_hidden_layers"))
