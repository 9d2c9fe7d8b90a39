"""KDA hybrids: Kimi-Linear, Kimi-K3 and GLM-5 Next."""

from __future__ import annotations

from sglang.srt.mem_cache.marconi.costs import layers
from sglang.srt.mem_cache.marconi.costs.families.shared import (
    ATTENTION,
    RECURRENT,
    deepseek_mlp,
    grouped_query_attention,
    latent_attention,
    layer_kinds,
    total,
)
from sglang.srt.mem_cache.marconi.costs.fields import Fields
from sglang.srt.mem_cache.marconi.costs.layers import LayerCost


def kimi_delta_attention(f: Fields, tp_size: int) -> LayerCost:
    linear = f.nested("linear_attn_config") or Fields({})
    return layers.kimi_delta_attention(
        f.number("hidden_size"),
        linear.number("num_heads", default=f.get("linear_num_heads")),
        linear.number("head_dim", default=f.get("linear_head_dim")),
        linear.number("short_conv_kernel_size", default=f.get("linear_conv_kernel_dim")),
        low_rank_gate=not linear.get("use_full_rank_gate", default=False),
        tp_size=tp_size,
    )


def _kda_layers(f: Fields, *, first: int) -> list[str]:
    """Kinds of layers from the list of KDA layers, which counts from ``first``."""
    linear = f.nested("linear_attn_config") or Fields({})
    listed = linear.get("kda_layers")
    if listed is None and f.get("layer_types") is not None:
        return layer_kinds(f)
    recurrent = set(listed or [])
    count = f.number("num_hidden_layers")
    return [RECURRENT if i + first in recurrent else ATTENTION for i in range(count)]


def kimi_linear(f: Fields, tp_size: int) -> LayerCost:
    """Kimi-Linear (upstream ``kimi_linear.py``) and Kimi-K3 (``kimi_k3.py``).

    KDA and latent attention. K3 adds an output gate to the latent attention, experts in a latent
    space, and attention over earlier residuals, whose scores are one scalar each.
    """
    gate = f.number("num_attention_heads") * f.number("v_head_dim", default=0)
    gate = gate if f.get("mla_use_output_gate", default=False) else 0
    full = (
        latent_attention(f, gate_width=gate)
        if f.get("kv_lora_rank") is not None
        else grouped_query_attention(f, tp_size)
    )
    kinds = _kda_layers(f, first=1)
    parts = [kimi_delta_attention(f, tp_size) if k == RECURRENT else full for k in kinds]
    parts += [deepseek_mlp(f, layer) for layer in range(len(kinds))]
    if f.get("attn_res_block_size") is not None:
        parts += [layers.projection(f.number("hidden_size"), 1)] * (2 * len(kinds) + 1)
    return total(parts)


def glm_next(f: Fields, tp_size: int) -> LayerCost:
    """GLM-5 Next (upstream ``glm5_next.py``): KDA, latent attention with DSA, residual streams.

    With ``index_topk`` the latent attention reads that many tokens of the prefix, chosen by an
    indexer over pools of ``index_kpool`` keys; layers that share another's choice have none. mHC
    mixes ``hc_mult`` residual streams around every mixer and MLP (arXiv:2512.24880).
    """
    kinds = _kda_layers(f, first=0)
    recurrent = kimi_delta_attention(f, tp_size)
    parts = [
        recurrent if kind == RECURRENT else _glm_attention(f, layer)
        for layer, kind in enumerate(kinds)
    ]
    parts += [deepseek_mlp(f, layer) for layer in range(len(kinds))]
    # transformers' config has no switch for mHC: its model always has the streams.
    if f.get("mhc", default=True):
        parts += [_hyper_connection(f)] * (2 * len(kinds))
    return total(parts)


def _glm_attention(f: Fields, layer: int) -> LayerCost:
    topk = f.get("index_topk")
    if topk is None:
        return latent_attention(f)
    full = latent_attention(f, window=int(topk))
    if _shares_choice(f, layer):
        return full
    pool = f.number("index_kpool", default=1)
    return full + layers.sparse_indexer(
        f.number("q_lora_rank"),
        f.number("hidden_size"),
        f.number("index_n_heads"),
        1,
        f.number("index_head_dim"),
        pool=pool,
        weighted=True,
        pool_gate=pool > 1,
    )


def _shares_choice(f: Fields, layer: int) -> bool:
    """Whether a DSA layer reads the tokens which an earlier layer's indexer chose."""
    named = f.get("indexer_types", "index_topk_pattern")
    if named is not None:
        return str(named[layer]) in ("S", "shared")
    steps = max(layer - f.number("index_skip_topk_offset", default=2) + 1, 0)
    return steps % f.number("index_topk_freq", default=1) != 0


def _hyper_connection(f: Fields) -> LayerCost:
    """Coefficients of the streams, and the product that mixes each stream into the others."""
    streams, hidden = f.number("hc_mult"), f.number("hidden_size")
    coefficients = layers.projection(streams * hidden, (2 + streams) * streams)
    return coefficients + LayerCost(matmul=2 * streams * streams * hidden)
