"""GDN hybrids: Qwen3-Next, Qwen3.5 and what is built on them, GigaChat 3.5, Jet-Nemotron."""

from __future__ import annotations

from sglang.srt.mem_cache.marconi.costs import layers
from sglang.srt.mem_cache.marconi.costs.families.shared import (
    ATTENTION,
    RECURRENT,
    deepseek_mlp,
    dense_mlp,
    gated_delta_net,
    grouped_query_attention,
    latent_attention,
    layer_kinds,
    pick,
    total,
)
from sglang.srt.mem_cache.marconi.costs.fields import Fields
from sglang.srt.mem_cache.marconi.costs.layers import LayerCost


def qwen_hybrid(f: Fields, tp_size: int) -> LayerCost:
    """Qwen3-Next and Qwen3.5, dense or MoE (upstream ``qwen3_next.py``, ``qwen3_5.py``).

    Attention with an output gate as wide as q. Also the text model of MiniCPM-V 4.6/4.7,
    Intern-S2-Preview and Intern-S2-Mobius, which shares experts between layers at the same cost.
    """
    return total(
        [_qwen_mixer(f, kind, tp_size) + _qwen_mlp(f, i) for i, kind in enumerate(layer_kinds(f))]
    )


def _qwen_mixer(f: Fields, kind: str, tp_size: int) -> LayerCost:
    if kind == RECURRENT:
        return gated_delta_net(f, tp_size)
    gate = bool(f.get("attn_output_gate", default=True))
    return grouped_query_attention(f, tp_size, output_gate=gate)


def _qwen_mlp(f: Fields, layer: int) -> LayerCost:
    # SGLang's config class of the dense Qwen3.5 inherits the fields of an MoE with their defaults,
    # so only the model type tells them apart, as upstream's own model file has it.
    dense = f.get("model_type") in ("qwen3_5", "qwen3_5_text") or not f.get("num_experts")
    dense = dense or layer in (f.get("mlp_only_layers") or [])
    dense = dense or (layer + 1) % f.number("decoder_sparse_step", default=1) != 0
    if dense:
        return dense_mlp(f)
    return layers.mixture_of_experts(
        f.number("hidden_size"),
        f.number("num_experts"),
        f.number("num_experts_per_tok"),
        f.number("moe_intermediate_size"),
        shared_intermediate=f.number("shared_expert_intermediate_size", default=0),
        shared_gate=True,
    )


def qwen4_experimental(f: Fields, tp_size: int) -> LayerCost:
    """Qwen4-Exp (upstream ``qwen4_exp.py``): Qwen3.5 with several residual streams.

    Around each mixer and each MLP a gated mix of ``hc_count`` streams; in some layers a per-layer
    embedding (PLE) of n-grams with a short convolution; optionally sparse attention (QSA).
    """
    hidden, streams = f.number("hidden_size"), f.number("hc_count")
    wide = streams * hidden
    mix = layers.projection(wide, f.number("hc_lowrank"))
    mix += layers.projection(f.number("hc_lowrank"), wide)
    around = mix + layers.projection(wide, streams)
    parts = [mix]
    for layer, kind in enumerate(layer_kinds(f)):
        mixer = _qwen_mixer(f, kind, tp_size)
        if kind == ATTENTION and f.get("indexer_n_heads") is not None:
            mixer = _qwen_sparse_attention(f, tp_size)
        parts += [mixer, _qwen_mlp(f, layer), around, around]
        if layer + 1 in (f.get("ple_layer_ids") or []):
            parts.append(_per_layer_embedding(f, wide))
    return total(parts)


def _qwen_sparse_attention(f: Fields, tp_size: int) -> LayerCost:
    """QSA: an indexer scores blocks of the prefix, attention reads the best and the open block."""
    ratio = f.number("indexer_compress_ratio")
    gate = bool(f.get("attn_output_gate", default=True))
    hidden = f.number("hidden_size")
    indexer = layers.sparse_indexer(
        hidden,
        hidden,
        f.number("indexer_n_heads"),
        f.number("indexer_kv_heads"),
        f.number("indexer_head_dim"),
        pool=ratio,
    )
    window = f.number("indexer_budget") + ratio - 1
    return indexer + grouped_query_attention(f, tp_size, output_gate=gate, window=window)


def _per_layer_embedding(f: Fields, wide: int) -> LayerCost:
    hidden = f.number("hidden_size")
    inputs = f.number("ple_embed_dim", default=hidden)
    kernel, dilation = f.number("ple_conv_kernel_size"), f.number("ngram_size")
    return LayerCost(
        matmul=layers.linear(inputs, wide) + layers.linear(inputs, hidden),
        conv=layers.causal_conv(wide, kernel),
        conv_elements=wide * (kernel - 1) * dilation,
    )


def gigachat(f: Fields, tp_size: int) -> LayerCost:
    """GigaChat 3.5 (upstream ``gigachat35.py``): GDN, gated latent attention, low-rank norms."""
    hidden = f.number("hidden_size")
    gate = f.number("num_attention_heads") * f.number("v_head_dim")
    gate = gate if f.get("gated_attention", default=False) else 0
    gated_norms = f.get("norm_type") in ("ZeroCenteredGatedNorm", "GatedNorm")
    norms_per_layer = 4 if f.get("layernorm_type") == "pre_post" else 2
    attention = latent_attention(f, gate_width=gate)
    if gated_norms:
        attention += _low_rank_norm(f.number("kv_lora_rank"))
        attention += _low_rank_norm(int(f.get("q_lora_rank", default=0)))
    kinds = layer_kinds(f) if f.get("layer_types") else _gigachat_kinds(f)
    parts = [attention if kind == ATTENTION else gated_delta_net(f, tp_size) for kind in kinds]
    parts += [deepseek_mlp(f, layer) for layer in range(len(kinds))]
    norms = norms_per_layer * len(kinds) + 1
    parts += [_low_rank_norm(hidden)] * (norms if gated_norms else 0)
    return total(parts)


def _gigachat_kinds(f: Fields) -> list[str]:
    full = set(f.get("full_attention_layers") or [])
    return [ATTENTION if i in full else RECURRENT for i in range(f.number("num_hidden_layers"))]


def _low_rank_norm(width: int, rank: int = 16) -> LayerCost:
    return layers.projection(width, rank) + layers.projection(rank, width)


def jet_nemotron(f: Fields, tp_size: int) -> LayerCost:
    """Jet-Nemotron and Jet-VLM (upstream ``jet_nemotron.py``): attention, windows and JetBlocks."""
    sections = Fields(f.get("efficient_attention_config", default={}))
    jet = sections.nested("jet") or Fields({})
    window = sections.nested("swa")
    kinds = {"attn": grouped_query_attention(f, tp_size)}
    if window is not None:
        kinds["swa"] = grouped_query_attention(f, tp_size, window=window.number("window_size"))
    key_dim = jet.number("head_dim", default=0)
    kinds["jet"] = layers.jet_block(
        f.number("hidden_size"),
        jet.number("num_heads", default=0),
        key_dim,
        int(key_dim * float(jet.get("expand_v", default=1))),
        jet.number("conv_size", default=1),
        jet.number("dconv_generator_reduction", default=1),
        tp_size=tp_size,
    )
    return total([pick(kinds, kind, f) + dense_mlp(f) for kind in f.get("layer_types", default=[])])
