"""The cost of every architecture against torch's own count of its forward pass.

``torch.utils.flop_counter.FlopCounterMode`` counts the matrix products and convolutions of a tiny
random transformers model on the CPU. Three parts are compared separately:

* products with weights (projections, MLPs, experts, routers): within 1 %;
* the products of queries with keys and of weights with values: within 1 %;
* convolutions: the counter also counts the padding's outputs, ``kernel - 1`` per layer.

The fourth part, the recurrence, cannot be compared: transformers runs it in chunks, partly as
elementwise products, which the counter does not see. It is counted by hand in
``test_marconi_utils.py``, by running each recurrence on numbers that count.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers
from sglang.srt.marconi_utils import cost_from_config
from sglang.srt.mem_cache.marconi.costs import layers
from sglang.srt.mem_cache.marconi.costs.architectures import BUILDERS
from sglang.srt.mem_cache.marconi.costs.layers import LayerCost
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

TOKENS = 64
"""A whole chunk of every recurrence, no longer than the sparse attentions' budgets."""

SOFTMAX_ATTENTION = re.compile(r"Attention$")
RECURRENT = re.compile(
    r"(DeltaNet|DeltaAttention|LinearAttention|LightningAttention|Mixer|MambaLayer)$"
)
ROTARY = re.compile(r"RotaryEmbedding$")

BASE: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GQA: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
MOE: dict[str, Any] = {"num_experts_per_tok": 3, "moe_intermediate_size": 40}
QWEN: dict[str, Any] = {
    **BASE,
    **GQA,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_conv_kernel_dim": 4,
}
QWEN_MOE: dict[str, Any] = {
    **QWEN,
    **MOE,
    "num_experts": 8,
    "shared_expert_intermediate_size": 56,
}
MAMBA2: dict[str, Any] = {"mamba_d_conv": 4, "mamba_d_state": 24, "mamba_chunk_size": 32}
NEMOTRON: dict[str, Any] = {
    **BASE,
    **GQA,
    **MOE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "layers_block_type": ["mamba", "mlp", "attention", "moe"],
    "head_dim": 24,
    "mamba_num_heads": 6,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 24,
    "conv_kernel": 4,
    "chunk_size": 32,
    "n_routed_experts": 8,
    "moe_shared_expert_intermediate_size": 56,
}
GRANITE: dict[str, Any] = {
    **BASE,
    **GQA,
    **MAMBA2,
    "hidden_size": 64,
    "intermediate_size": 40,
    "shared_intermediate_size": 56,
    "num_hidden_layers": 3,
    "layer_types": ["mamba", "attention", "mamba"],
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
}
LFM2: dict[str, Any] = {
    **BASE,
    **GQA,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "layer_types": ["conv", "full_attention", "conv"],
}
KDA: dict[str, Any] = {
    **BASE,
    **MOE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "v_head_dim": 20,
}
MAMBA1: dict[str, Any] = {
    **BASE,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "state_size": 16,
    "time_step_rank": 8,
}

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3NextForCausalLM": ("qwen3_next", {**QWEN_MOE, "intermediate_size": 96}),
    "Qwen3_5ForCausalLM": ("qwen3_5_text", {**QWEN, "intermediate_size": 96}),
    "Qwen3_5MoeForCausalLM": ("qwen3_5_moe_text", QWEN_MOE),
    "Qwen4ExpForConditionalGeneration": (
        "qwen4_exp_text",
        {
            **QWEN_MOE,
            "hc_count": 2,
            "hc_lowrank": 12,
            "ple_layer_ids": [2],
            "ple_embed_dim": 48,
            "ngram_vocab_size_base": 64,
            "heads_per_ngram": 2,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 32,
            "indexer_budget": 64,
            "indexer_compress_ratio": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.25,
                "mrope_section": [2, 1, 1],
            },
        },
    ),
    "FalconH1ForCausalLM": (
        "falcon_h1",
        {
            **BASE,
            **GQA,
            **MAMBA2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "mamba_d_ssm": 96,
            "mamba_n_heads": 6,
            "mamba_d_head": 16,
            "mamba_n_groups": 2,
        },
    ),
    "NemotronHForCausalLM": ("nemotron_h", NEMOTRON),
    "NemotronHForCausalLM (latent MoE)": ("nemotron_h", {**NEMOTRON, "moe_latent_size": 32}),
    "GraniteMoeHybridForCausalLM": (
        "granitemoehybrid",
        {**GRANITE, "num_local_experts": 8, "num_experts_per_tok": 3},
    ),
    "GraniteMoeHybridForCausalLM (dense)": (
        "granitemoehybrid",
        {**GRANITE, "num_local_experts": 0, "num_experts_per_tok": 0},
    ),
    "Lfm2ForCausalLM": ("lfm2", {**LFM2, "block_multiple_of": 16}),
    "Lfm2MoeForCausalLM": ("lfm2_moe", {**LFM2, **MOE, "num_experts": 8, "num_dense_layers": 1}),
    "KimiLinearForCausalLM": (
        "kimi_linear",
        {
            **KDA,
            "num_hidden_layers": 4,
            "num_local_experts": 8,
            "n_shared_experts": 1,
            "q_lora_rank": None,
            "qk_rope_head_dim": 8,
        },
    ),
    "Glm5NextForConditionalGeneration": (
        "glm5_next_text",
        {
            **KDA,
            "num_hidden_layers": 4,
            "n_routed_experts": 8,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 0,
            "index_topk": 64,
            "index_head_dim": 16,
            "index_n_heads": 8,
            "index_kpool": 8,
        },
    ),
    "ZayaForCausalLM": (
        "zaya",
        {
            **BASE,
            **GQA,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "moe_intermediate_size": 40,
            "num_experts": 4,
            "router_hidden_size": 24,
        },
    ),
    "InklingForConditionalGeneration": (
        "inkling_text",
        {
            **BASE,
            **GQA,
            **MOE,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "swa_head_dim": 16,
            "sliding_window_size": 64,
            "d_rel": 4,
            "rel_extent": 32,
            "intermediate_size": 96,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        },
    ),
    "MambaForCausalLM": ("mamba", MAMBA1),
    "FalconMambaForCausalLM": ("falcon_mamba", MAMBA1),
    "Mamba2ForCausalLM": (
        "mamba2",
        {
            **BASE,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 16,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 32,
        },
    ),
}
"""Architecture of SGLang to the model type and the tiny sizes of transformers' own."""

SAME_LAYERS = {
    "InternS2MobiusForConditionalGeneration": "Qwen3_5MoeForCausalLM",
    "InternS2PreviewForConditionalGeneration": "Qwen3_5MoeForCausalLM",
    "Lfm2VlForConditionalGeneration": "Lfm2ForCausalLM",
    "MiniCPMV4_6ForConditionalGeneration": "Qwen3_5ForCausalLM",
    "MiniCPMV4_7ForConditionalGeneration": "Qwen3_5ForCausalLM",
    "NemotronHPuzzleForCausalLM": "NemotronHForCausalLM",
    "NemotronH_Nano_Omni_Reasoning_V3": "NemotronHForCausalLM",
    "NemotronH_Nano_VL_V2": "NemotronHForCausalLM",
    "NemotronH_Omni_Reasoning_V3": "NemotronHForCausalLM",
    "Qwen3_5ForConditionalGeneration": "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForConditionalGeneration": "Qwen3_5MoeForCausalLM",
}
"""Architectures whose text model is another's, so that its comparison holds for them."""

NOT_IN_TRANSFORMERS = {
    "BailingMoeV2_5ForCausalLM": "lightning attention is compared with MiniMax's below",
    "BailingMoeV3ForCausalLM": "KDA and latent attention are compared in Kimi-Linear",
    "BailingMoeV3VLForConditionalGeneration": "as BailingMoeV3ForCausalLM",
    "GigaChat35ForCausalLM": "GDN is compared in Qwen3-Next, latent attention in Kimi-Linear",
    "JetNemotronForCausalLM": "JetBlock exists in SGLang and in its authors' repository only",
    "JetVLMForConditionalGeneration": "as JetNemotronForCausalLM",
    "KimiK3ForConditionalGeneration": "K3's gate and latent experts are not in its Kimi-Linear",
    "KimiK3LinearForCausalLM": "as KimiK3ForConditionalGeneration",
    "MiniCPMSALAForCausalLM": "lightning attention is compared with MiniMax's below",
}


@dataclass(frozen=True)
class Counts:
    """FLOPs of one forward pass, by what they are."""

    weights: int
    scores: int
    recurrence: int
    convolution: int


def tiny_config(model_type: str, **sizes: Any) -> Any:
    """A config of transformers' own class, whatever SGLang has registered under its name."""
    return getattr(transformers, CONFIG_MAPPING_NAMES[model_type])(**sizes)


def count(config: Any) -> tuple[Counts, torch.nn.Module]:
    """What torch counts for ``TOKENS`` tokens through the model of ``config``, without LM head."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    # The grouped kernel that is the default computes the same products, uncounted.
    if any("Experts" in type(module).__name__ for module in model.modules()):
        model.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.randint(3, 60, (1, TOKENS)), use_cache=False)
    flops = counter.get_flop_counts()
    root = type(model).__name__

    def counted(module: str, *operations: str) -> int:
        by_operation = flops.get(module, {})
        return sum(n for op, n in by_operation.items() if str(op).split(".")[-1] in operations)

    def batched_products(kind: re.Pattern[str], but: re.Pattern[str] | None = None) -> int:
        return sum(
            counted(f"{root}.{name}", "bmm")
            for name, module in model.named_modules()
            if kind.search(type(module).__name__)
            and not (but and but.search(type(module).__name__))
        )

    attention = batched_products(SOFTMAX_ATTENTION, RECURRENT)
    recurrence = batched_products(RECURRENT)
    rotary = batched_products(ROTARY)
    counts = Counts(
        weights=counted("Global", "mm", "addmm", "bmm") - attention - recurrence - rotary,
        scores=attention,
        recurrence=recurrence,
        convolution=counted("Global", "convolution"),
    )
    return without_block_scores(counts, config), model


def without_block_scores(counts: Counts, config: Any) -> Counts:
    """Takes QSA's scores of visible blocks out of the products that look like a weight's."""
    ratio = getattr(config, "indexer_compress_ratio", None)
    if ratio is None:
        return counts
    blocks = sum(position // ratio for position in range(1, TOKENS + 1))
    scored = 2 * config.indexer_n_heads * config.indexer_head_dim * blocks
    return replace(counts, weights=counts.weights - scored)


def pair_flops(cost: LayerCost, config: Any) -> int:
    """FLOPs per pair of what torch counts as attention: everything but QSA's scores."""
    scored = sum(term.flops_per_pair for term in cost.scores)
    if getattr(config, "indexer_compress_ratio", None) is None:
        return scored
    return scored - next(term.flops_per_pair for term in cost.scores if term.window is None)


def percent(ours: int, theirs: int) -> float:
    """How far ``ours`` is off, in percent; nothing counted and nothing claimed is no error."""
    return 100 * (ours / theirs - 1) if theirs else 100.0 * bool(ours)


@pytest.mark.parametrize("name", TINY)
def test_costs_agree_with_torchs_count(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    model_type, sizes = TINY[name]
    config = tiny_config(model_type, **sizes)
    counts, model = count(config)
    cost = cost_from_config(config).layers
    assert cost is not None
    assert cost_from_config(config.to_dict()).layers == cost
    weights = percent(cost.matmul * TOKENS, counts.weights)
    scores = percent(pair_flops(cost, config) * TOKENS**2, counts.scores)
    convolution = percent(cost.conv * TOKENS, counts.convolution)
    record_property("weights_percent", weights)
    record_property("scores_percent", scores)
    record_property("convolution_percent", convolution)
    print(f"{name}: weights {weights:+.3f} %, scores {scores:+.3f} %, conv {convolution:+.3f} %")

    assert abs(weights) <= 1
    assert abs(scores) <= 1
    longest = max((span(m) for m in model.modules() if isinstance(m, torch.nn.Conv1d)), default=0)
    assert 100 * (TOKENS / (TOKENS + longest) - 1) - 1e-9 <= convolution <= 0
    assert (cost.scan > 0) == (counts.recurrence > 0)


def span(convolution: torch.nn.Conv1d) -> int:
    """Tokens that a causal convolution pads in front."""
    return int((convolution.kernel_size[0] - 1) * convolution.dilation[0])


def test_lightning_attention_agrees_with_torchs_count() -> None:
    config = tiny_config(
        "minimax",
        **BASE,
        **GQA,
        hidden_size=64,
        intermediate_size=40,
        num_hidden_layers=4,
        head_dim=16,
        num_local_experts=8,
        num_experts_per_tok=3,
        block_size=32,
    )
    counts, _ = count(config)
    lightning = layers.lightning_attention(64, 4, 16)
    attention = layers.attention(64, 4, 2, 16)
    experts = layers.mixture_of_experts(64, 8, 3, 40)
    kinds = {"linear_attention": lightning, "full_attention": attention}
    cost = sum((kinds[kind] + experts for kind in config.layer_types), LayerCost())
    assert {"linear_attention", "full_attention"} == set(config.layer_types)
    assert abs(percent(cost.matmul * TOKENS, counts.weights)) <= 1
    assert abs(percent(cost.scores[0].flops_per_pair * TOKENS**2, counts.scores)) <= 1


def test_every_architecture_is_compared_or_says_why_not() -> None:
    compared = {name.split(" ")[0] for name in TINY}
    assert compared | set(SAME_LAYERS) | set(NOT_IN_TRANSFORMERS) == set(BUILDERS)
    assert not compared & set(NOT_IN_TRANSFORMERS)
    assert set(SAME_LAYERS.values()) <= compared
    for name, twin in SAME_LAYERS.items():
        assert BUILDERS[name] is BUILDERS[twin]


@pytest.mark.parametrize("name", NOT_IN_TRANSFORMERS)
def test_architectures_that_transformers_lacks(name: str) -> None:
    pytest.skip(f"transformers has no {name}: {NOT_IN_TRANSFORMERS[name]}")
