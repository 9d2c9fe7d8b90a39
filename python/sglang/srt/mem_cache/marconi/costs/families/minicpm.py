"""MiniCPM-SALA: lightning attention and softmax attention."""

from __future__ import annotations

from sglang.srt.mem_cache.marconi.costs import layers
from sglang.srt.mem_cache.marconi.costs.families.shared import (
    dense_mlp,
    grouped_query_attention,
    head_dim_of,
    total,
)
from sglang.srt.mem_cache.marconi.costs.fields import Fields
from sglang.srt.mem_cache.marconi.costs.layers import LayerCost


def minicpm_sala(f: Fields, tp_size: int) -> LayerCost:
    """MiniCPM-SALA (upstream ``minicpm.py``): lightning and grouped-query attention.

    Where ``sparse_config`` makes the softmax layers sparse, they are still priced as dense: which
    blocks they read is the kernel's choice at run time.
    """
    types = f.get("mixer_types", default=["minicpm4"])
    count = f.number("num_hidden_layers")
    kinds = (list(types) * count)[:count]
    recurrent = layers.lightning_attention(
        f.number("hidden_size"),
        f.number("lightning_nh", "num_attention_heads"),
        int(f.get("lightning_head_dim") or head_dim_of(f)),
        output_gate=bool(f.get("use_output_gate", default=False)),
        tp_size=tp_size,
    )
    gate = bool(f.get("attn_use_output_gate", default=False))
    full = grouped_query_attention(f, tp_size, output_gate=gate)
    mixers = [recurrent if "lightning" in str(kind) else full for kind in kinds]
    return total([mixer + dense_mlp(f) for mixer in mixers])
