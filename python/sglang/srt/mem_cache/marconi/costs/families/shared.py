"""Layers and config fields that several families have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from sglang.srt.mem_cache.marconi.costs import layers
from sglang.srt.mem_cache.marconi.costs.fields import Fields
from sglang.srt.mem_cache.marconi.costs.layers import LayerCost

ATTENTION = "attention"
RECURRENT = "recurrent"
_LAYER_KINDS = {
    "attention": ATTENTION,
    "full_attention": ATTENTION,
    "indexed_attention": ATTENTION,
    "qwen_sparse_attention": ATTENTION,
    "linear_attention": RECURRENT,
    "mamba": RECURRENT,
    "conv": RECURRENT,
    "short_conv": RECURRENT,
}


class UnknownLayerError(ValueError):
    """A known architecture with a kind of layer that its builder does not know."""


def layer_kinds(f: Fields) -> list[str]:
    """Attention or recurrent, for each layer.

    ``layers_block_type`` is what SGLang's config objects offer; a bare ``config.json`` may have
    only the interval.

    Raises:
        UnknownLayerError: for a kind of layer without a cost.
    """
    named = f.get("layer_types", "layers_block_type")
    if named is not None:
        return [pick(_LAYER_KINDS, kind, f) for kind in named]
    interval = f.number("full_attention_interval", default=4)
    count = f.number("num_hidden_layers")
    return [RECURRENT if (i + 1) % interval else ATTENTION for i in range(count)]


_Value = TypeVar("_Value")


def pick(table: Mapping[str, _Value], kind: object, f: Fields) -> _Value:
    """What ``table`` has for a kind of layer.

    Raises:
        UnknownLayerError: if it has nothing.
    """
    if str(kind) not in table:
        raise UnknownLayerError(f"layer kind {str(kind)!r} of {f.label()} has no cost")
    return table[str(kind)]


def total(parts: Sequence[LayerCost]) -> LayerCost:
    """All of ``parts`` together."""
    return sum(parts, LayerCost())


def head_dim_of(f: Fields) -> int:
    """Width of an attention head; some configs only imply it."""
    given = f.get("head_dim")
    return int(given) if given else f.number("hidden_size") // f.number("num_attention_heads")


def grouped_query_attention(
    f: Fields, tp_size: int, *, output_gate: bool = False, window: int | None = None
) -> LayerCost:
    """Softmax attention under the field names which nearly all configs use."""
    return layers.attention(
        f.number("hidden_size"),
        f.number("num_attention_heads"),
        f.number("num_key_value_heads", "num_attention_heads"),
        head_dim_of(f),
        output_gate=output_gate,
        window=window,
        tp_size=tp_size,
    )


def latent_attention(f: Fields, *, gate_width: int = 0, window: int | None = None) -> LayerCost:
    """Latent attention under the field names of DeepSeek-V2."""
    return layers.latent_attention(
        f.number("hidden_size"),
        f.number("num_attention_heads"),
        q_lora_rank=f.get("q_lora_rank"),
        kv_lora_rank=f.number("kv_lora_rank"),
        qk_nope_head_dim=f.number("qk_nope_head_dim"),
        qk_rope_head_dim=f.number("qk_rope_head_dim", default=0),
        v_head_dim=f.number("v_head_dim"),
        gate_width=gate_width,
        window=window,
    )


def gated_delta_net(f: Fields, tp_size: int) -> LayerCost:
    """GDN under the field names of Qwen3-Next."""
    return layers.gated_delta_net(
        f.number("hidden_size"),
        f.number("linear_num_key_heads"),
        f.number("linear_num_value_heads"),
        f.number("linear_key_head_dim"),
        f.number("linear_value_head_dim"),
        f.number("linear_conv_kernel_dim"),
        tp_size=tp_size,
    )


def dense_mlp(f: Fields) -> LayerCost:
    """A gated MLP of ``intermediate_size``."""
    return layers.mlp(f.number("hidden_size"), f.number("intermediate_size"))


def _deepseek_moe(f: Fields) -> LayerCost:
    """Routed and shared experts under the names of DeepSeek, Kimi, GLM and Ling."""
    width = f.number("moe_intermediate_size")
    shared = f.number("num_shared_experts", "n_shared_experts", default=0)
    latent = f.get("routed_expert_hidden_size")
    return layers.mixture_of_experts(
        f.number("hidden_size"),
        f.number("num_experts", "n_routed_experts", "num_local_experts"),
        f.number("num_experts_per_tok", "num_experts_per_token"),
        width,
        shared_intermediate=f.number("moe_shared_expert_intermediate_size", default=shared * width),
        latent=None if latent is None else int(latent),
    )


def deepseek_mlp(f: Fields, layer: int) -> LayerCost:
    """Dense in the first layers, routed after them."""
    kinds = f.get("mlp_layer_types")
    experts = f.get("num_experts", "n_routed_experts", "num_local_experts")
    if kinds is not None:
        sparse = kinds[layer] == "sparse"
    else:
        sparse = (
            experts is not None
            and layer >= f.number("first_k_dense_replace", default=0)
            and layer % f.number("moe_layer_freq", default=1) == 0
        )
    return _deepseek_moe(f) if sparse else dense_mlp(f)
