"""Hybrids whose recurrent state is a window of tokens: LFM2, ZAYA1, Inkling."""

from __future__ import annotations

from sglang.srt.mem_cache.marconi.costs import layers
from sglang.srt.mem_cache.marconi.costs.families.shared import (
    ATTENTION,
    RECURRENT,
    grouped_query_attention,
    head_dim_of,
    layer_kinds,
    total,
)
from sglang.srt.mem_cache.marconi.costs.fields import Fields
from sglang.srt.mem_cache.marconi.costs.layers import LayerCost


def lfm2(f: Fields, tp_size: int) -> LayerCost:
    """LFM2, LFM2-VL and LFM2-MoE (upstream ``lfm2.py``, ``lfm2_moe.py``)."""
    mixers = {
        ATTENTION: grouped_query_attention(f, tp_size),
        RECURRENT: layers.short_convolution(
            f.number("hidden_size"), f.number("conv_L_cache"), tp_size=tp_size
        ),
    }
    kinds = layer_kinds(f) if f.get("layer_types") is not None else _lfm2_kinds(f)
    return total([mixers[kind] + _lfm2_mlp(f, i) for i, kind in enumerate(kinds)])


def _lfm2_kinds(f: Fields) -> list[str]:
    full = set(f.get("full_attn_idxs") or [])
    return [ATTENTION if i in full else RECURRENT for i in range(f.number("num_hidden_layers"))]


def _lfm2_mlp(f: Fields, layer: int) -> LayerCost:
    hidden = f.number("hidden_size")
    experts = f.get("num_experts")
    if experts and layer >= f.number("num_dense_layers", default=0):
        return layers.mixture_of_experts(
            hidden,
            int(experts),
            f.number("num_experts_per_tok"),
            f.number("moe_intermediate_size"),
        )
    width = f.number("block_ff_dim", "intermediate_size")
    if f.get("block_auto_adjust_ff_dim", default=False):
        multiple = f.number("block_multiple_of", default=256)
        width = int(f.get("block_ffn_dim_multiplier", default=1) * int(2 * width / 3))
        width = -(-width // multiple) * multiple
    return layers.mlp(hidden, width)


def zaya(f: Fields, tp_size: int) -> LayerCost:
    """ZAYA1 (upstream ``zaya.py``): compressed convolutional attention (arXiv:2510.04476) and MoE.

    Its first config format has attention and experts in alternate layers, the newer one, of
    transformers, both in every layer; the sums are the same.
    """
    alternate = f.get("layer_types") is None
    if not alternate:
        count = f.number("num_hidden_layers")
        windows = [str(kind).endswith("sliding") for kind in f.get("layer_types")]
        expert_width = f.number("moe_intermediate_size")
        router_width = f.number("router_hidden_size")
    else:
        named = f.get("zaya_layers") or ["a", 0] * (f.number("num_hidden_layers") // 2)
        count = sum(1 for kind in named if kind != "a")
        windows = [False] * sum(1 for kind in named if kind == "a")
        # The format gives the width of gate and up together.
        expert_width = f.number("ffn_hidden_size") // 2
        router_width = f.number("zaya_mlp_expansion")
    window = f.get("sliding_window")
    parts = [_zaya_attention(f, tp_size, int(window) if w else None) for w in windows]
    return total(parts + [_zaya_experts(f, expert_width, router_width)] * count)


def _zaya_attention(f: Fields, tp_size: int, window: int | None) -> LayerCost:
    heads, kv_heads, head_dim = (
        f.number("num_attention_heads"),
        f.number("num_key_value_heads"),
        head_dim_of(f),
    )
    channels = (heads + kv_heads) * head_dim
    first, second = f.number("cca_time0"), f.number("cca_time1")
    padding = first + second - 2
    mixing = LayerCost(
        conv=layers.causal_conv(channels, first) + layers.causal_conv(channels * head_dim, second),
        # Beside the convolution's window, the hidden state of the previous token, never sharded.
        conv_elements=channels // tp_size * padding + f.number("hidden_size"),
    )
    return mixing + grouped_query_attention(f, tp_size, window=window)


def _zaya_experts(f: Fields, width: int, router_width: int) -> LayerCost:
    hidden, experts = f.number("hidden_size"), f.number("num_experts")
    skip = 1 if f.get("zaya_use_mod", default=True) else 0
    router = layers.linear(hidden, router_width) + 2 * layers.linear(router_width, router_width)
    return layers.mixture_of_experts(
        hidden,
        experts,
        f.number("moe_router_topk", "num_experts_per_tok"),
        width,
        router=router + layers.linear(router_width, experts + skip),
    )


def inkling(f: Fields, tp_size: int) -> LayerCost:
    """Inkling (upstream ``inkling.py``): windowed and full attention between short convolutions."""
    count = f.number("num_hidden_layers")
    local = {int(i) for i in f.get("local_layer_ids") or []}
    types = f.get("layer_types")
    if types is not None:
        local = {i for i, kind in enumerate(types) if "sliding" in str(kind)}
    state = _inkling_state(f, tp_size)
    parts = []
    for layer in range(count):
        attention = _inkling_attention(f, layer in local, tp_size)
        parts += [attention, state, _inkling_mlp(f, layer)]
    return total(parts)


def _inkling_attention(f: Fields, local: bool, tp_size: int) -> LayerCost:
    prefix = "swa_" if local else ""
    hidden, kernel = f.number("hidden_size"), f.number("sconv_kernel_size", "conv_kernel_size")
    heads = f.number(prefix + "num_attention_heads", "num_attention_heads")
    kv_heads = f.number(prefix + "num_key_value_heads", "num_key_value_heads")
    head_dim = f.number(prefix + "head_dim", "head_dim")
    window = f.number("sliding_window_size") if local else None
    # Learnt biases by distance: one row of the bank for each head, read from the token.
    positions = heads * layers.linear(
        f.number("d_rel"), window if window is not None else f.number("rel_extent")
    )
    streams = 2 * hidden if f.get("use_sconv", default=True) else 0
    extra = LayerCost(
        matmul=layers.linear(hidden, heads * f.number("d_rel")) + positions,
        conv=layers.causal_conv(2 * kv_heads * head_dim + streams, kernel),
    )
    return extra + layers.attention(
        hidden, heads, kv_heads, head_dim, window=window, tp_size=tp_size
    )


def _inkling_state(f: Fields, tp_size: int) -> LayerCost:
    """Six windows per layer: k and v in the sizes of both kinds of attention, and two streams."""
    kernel = f.number("sconv_kernel_size", "conv_kernel_size")
    widths = [
        layers.heads_of_shard(f.number(p + "num_key_value_heads", "num_key_value_heads"), tp_size)
        * f.number(p + "head_dim", "head_dim")
        for p in ("", "swa_")
    ]
    return LayerCost(conv_elements=2 * (sum(widths) + f.number("hidden_size")) * (kernel - 1))


def _inkling_mlp(f: Fields, layer: int) -> LayerCost:
    hidden = f.number("hidden_size")
    kinds = f.get("mlp_layer_types")
    dense = (
        layer < f.number("dense_mlp_idx", default=0)
        if kinds is None
        else (kinds[layer] != "sparse")
    )
    if dense:
        return layers.mlp(hidden, f.number("dense_intermediate_size", "intermediate_size"))
    shared = f.number("n_shared_experts", default=0)
    width = f.number("moe_intermediate_size", "intermediate_size")
    # Shared experts are scored by the router beside the routed ones.
    return layers.mixture_of_experts(
        hidden,
        f.number("n_routed_experts") + shared,
        f.number("num_experts_per_tok"),
        width,
        shared_intermediate=shared * f.number("shared_experts_size", default=1) * width,
    )
