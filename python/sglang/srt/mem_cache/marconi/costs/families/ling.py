"""Ling and Ring of both generations: lightning attention (2.5) or KDA (3), and latent attention."""

from __future__ import annotations

from sglang.srt.mem_cache.marconi.costs import layers
from sglang.srt.mem_cache.marconi.costs.families.shared import (
    deepseek_mlp,
    grouped_query_attention,
    head_dim_of,
    latent_attention,
    total,
)
from sglang.srt.mem_cache.marconi.costs.fields import Fields
from sglang.srt.mem_cache.marconi.costs.layers import LayerCost


def bailing_kda(f: Fields, tp_size: int) -> LayerCost:
    """Ling-V3 (upstream ``bailing_moe_v3.py``): KDA and gated latent attention."""
    heads = f.number("num_attention_heads")
    low_rank = not f.get("no_kda_lora", default=False)
    recurrent = layers.kimi_delta_attention(
        f.number("hidden_size"),
        heads,
        head_dim_of(f),
        f.number("short_conv_kernel_size"),
        low_rank_decay=low_rank,
        low_rank_gate=low_rank,
        tp_size=tp_size,
    )
    granularity = f.get("gated_attention_proj_granularity_type")
    widths = {"head_wise": heads, "element_wise": heads * f.number("v_head_dim")}
    full = latent_attention(f, gate_width=widths.get(str(granularity), 0))
    return _bailing(f, recurrent, full)


def bailing_lightning(f: Fields, tp_size: int) -> LayerCost:
    """Ling/Ring 2.5 (upstream ``bailing_moe_linear.py``): lightning and latent attention."""
    recurrent = layers.lightning_attention(
        f.number("hidden_size"), f.number("num_attention_heads"), head_dim_of(f), tp_size=tp_size
    )
    latent = f.get("full_attention_type", default="mla") == "mla"
    full = latent_attention(f) if latent else grouped_query_attention(f, tp_size)
    return _bailing(f, recurrent, full)


def bailing_hybrid(f: Fields, tp_size: int) -> LayerCost:
    """Either generation: only the one with KDA has a short convolution."""
    kda = f.get("short_conv_kernel_size") is not None
    return bailing_kda(f, tp_size) if kda else bailing_lightning(f, tp_size)


def _bailing(f: Fields, recurrent: LayerCost, full: LayerCost) -> LayerCost:
    group = f.get("layer_group_size", default=1)
    count = f.number("num_hidden_layers")
    linear = (
        [(i + 1) % int(group) != 0 for i in range(count)]
        if isinstance(group, int)
        else [flag == 1 for flag in group]
    )
    parts = [recurrent if is_linear else full for is_linear in linear]
    return total(parts + [deepseek_mlp(f, layer) for layer in range(count)])
