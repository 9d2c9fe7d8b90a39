"""Which layers an architecture is made of: a builder for every hybrid that SGLang serves.

A builder turns the fields of a config into the ``LayerCost`` of the whole model; they are in
``families``. To add an architecture, write a builder from its model file and enter it in
``BUILDERS`` under its name in ``architectures`` of ``config.json``, and in ``MODEL_TYPES`` under
its ``model_type``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.mem_cache.marconi.costs.families.convolution import inkling, lfm2, zaya
from sglang.srt.mem_cache.marconi.costs.families.gated_delta import (
    gigachat,
    jet_nemotron,
    qwen4_experimental,
    qwen_hybrid,
)
from sglang.srt.mem_cache.marconi.costs.families.kimi_delta import glm_next, kimi_linear
from sglang.srt.mem_cache.marconi.costs.families.ling import (
    bailing_hybrid,
    bailing_kda,
    bailing_lightning,
)
from sglang.srt.mem_cache.marconi.costs.families.mamba import (
    falcon_h1,
    granite_hybrid,
    mamba1_pure,
    mamba2_pure,
    nemotron_h,
)
from sglang.srt.mem_cache.marconi.costs.families.minicpm import minicpm_sala
from sglang.srt.mem_cache.marconi.costs.fields import Fields
from sglang.srt.mem_cache.marconi.costs.layers import LayerCost
from sglang.srt.mem_cache.marconi.costs.model import AttentionCount, ModelCost, model_cost

Builder = Callable[[Fields, int], LayerCost]
"""From the fields of a (text) config and the tensor-parallel size to the cost of all layers."""

#: Bytes of a number, by the name that configs have for its type.
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class UnknownArchitectureError(ValueError):
    """No builder knows this architecture; LRU (policy 1) needs none."""

    def __init__(self, architecture: str) -> None:
        super().__init__(
            f"no cost model for {architecture!r}. Known: {', '.join(sorted(BUILDERS))}. Add a "
            "builder that adds up its layers to BUILDERS in "
            "sglang/srt/mem_cache/marconi/costs/architectures.py, or serve with "
            "--marconi-evict-policy 1, which needs none."
        )
        self.architecture = architecture


def cost_from_config(
    config: Any,
    *,
    tp_size: int = 1,
    kv_dtype_bytes: int = 2,
    temporal_dtype_bytes: int | None = None,
    conv_dtype_bytes: int = 2,
    attention: AttentionCount = "square",
    name: str = "",
) -> ModelCost:
    """The cost of the model that ``config`` describes.

    ``config`` is a transformers or SGLang config object, or the dict of a ``config.json``; the text
    model of a multimodal one is found by itself. ``tp_size`` shards the bytes, not the FLOPs.
    ``*_dtype_bytes`` are bytes per element; the temporal state's default is the config's
    ``mamba_ssm_dtype``, else 4 (float32), as upstream ``configs/mamba_utils.py`` has it.

    Raises:
        UnknownArchitectureError: if there is no builder for it.
        UnknownLayerError: if it has a kind of layer that its builder does not know.
        MissingFieldError: if the config lacks a field that its builder needs.
    """
    outer = Fields(config)
    text = outer.nested("text_config", "llm_config") or outer
    architecture, builder = _find_builder(outer, text)
    if temporal_dtype_bytes is None:
        dtype = text.get("mamba_ssm_dtype") or outer.get("mamba_ssm_dtype")
        temporal_dtype_bytes = DTYPE_BYTES.get(str(dtype).removeprefix("torch."), 4)
    return model_cost(
        builder(text, tp_size),
        kv_dtype_bytes=kv_dtype_bytes,
        temporal_dtype_bytes=temporal_dtype_bytes,
        conv_dtype_bytes=conv_dtype_bytes,
        attention=attention,
        name=name,
        architecture=architecture,
    )


def _find_builder(outer: Fields, text: Fields) -> tuple[str, Builder]:
    names = [*(outer.get("architectures") or []), *(text.get("architectures") or [])]
    for name in names:
        if name in BUILDERS:
            return name, BUILDERS[name]
    for model_type in (outer.get("model_type"), text.get("model_type")):
        if model_type in MODEL_TYPES:
            return names[0] if names else str(model_type), MODEL_TYPES[str(model_type)]
    raise UnknownArchitectureError(outer.label())


BUILDERS: dict[str, Builder] = {
    "BailingMoeV2_5ForCausalLM": bailing_lightning,
    "BailingMoeV3ForCausalLM": bailing_kda,
    "BailingMoeV3VLForConditionalGeneration": bailing_kda,
    "FalconH1ForCausalLM": falcon_h1,
    "FalconMambaForCausalLM": mamba1_pure,
    "GigaChat35ForCausalLM": gigachat,
    "Glm5NextForConditionalGeneration": glm_next,
    "GraniteMoeHybridForCausalLM": granite_hybrid,
    "InklingForConditionalGeneration": inkling,
    "InternS2MobiusForConditionalGeneration": qwen_hybrid,
    "InternS2PreviewForConditionalGeneration": qwen_hybrid,
    "JetNemotronForCausalLM": jet_nemotron,
    "JetVLMForConditionalGeneration": jet_nemotron,
    "KimiK3ForConditionalGeneration": kimi_linear,
    "KimiK3LinearForCausalLM": kimi_linear,
    "KimiLinearForCausalLM": kimi_linear,
    "Lfm2ForCausalLM": lfm2,
    "Lfm2MoeForCausalLM": lfm2,
    "Lfm2VlForConditionalGeneration": lfm2,
    "Mamba2ForCausalLM": mamba2_pure,
    "MambaForCausalLM": mamba1_pure,
    "MiniCPMSALAForCausalLM": minicpm_sala,
    "MiniCPMV4_6ForConditionalGeneration": qwen_hybrid,
    "MiniCPMV4_7ForConditionalGeneration": qwen_hybrid,
    "NemotronHForCausalLM": nemotron_h,
    "NemotronHPuzzleForCausalLM": nemotron_h,
    "NemotronH_Nano_Omni_Reasoning_V3": nemotron_h,
    "NemotronH_Nano_VL_V2": nemotron_h,
    "NemotronH_Omni_Reasoning_V3": nemotron_h,
    "Qwen3NextForCausalLM": qwen_hybrid,
    "Qwen3_5ForCausalLM": qwen_hybrid,
    "Qwen3_5ForConditionalGeneration": qwen_hybrid,
    "Qwen3_5MoeForCausalLM": qwen_hybrid,
    "Qwen3_5MoeForConditionalGeneration": qwen_hybrid,
    "Qwen4ExpForConditionalGeneration": qwen4_experimental,
    "ZayaForCausalLM": zaya,
}
"""By the name in ``architectures`` of ``config.json``."""

MODEL_TYPES: dict[str, Builder] = {
    "NemotronH_Nano_VL_V2": nemotron_h,
    "bailing_hybrid": bailing_hybrid,
    "bailing_moe_v3_vl": bailing_kda,
    "falcon_h1": falcon_h1,
    "falcon_mamba": mamba1_pure,
    "gigachat3_5": gigachat,
    "glm5_next": glm_next,
    "glm5_next_text": glm_next,
    "granitemoehybrid": granite_hybrid,
    "inkling_mm_model": inkling,
    "inkling_model": inkling,
    "inkling_text": inkling,
    "intern_s2_preview": qwen_hybrid,
    "interns2_mobius": qwen_hybrid,
    "interns2_mobius_text": qwen_hybrid,
    "jet_nemotron": jet_nemotron,
    "jet_vlm": jet_nemotron,
    "kimi_k3": kimi_linear,
    "kimi_linear": kimi_linear,
    "lfm2": lfm2,
    "lfm2_moe": lfm2,
    "lfm2_vl": lfm2,
    "mamba": mamba1_pure,
    "mamba2": mamba2_pure,
    "minicpm_sala": minicpm_sala,
    "nemotron_h": nemotron_h,
    "nemotron_h_puzzle": nemotron_h,
    "qwen3_5": qwen_hybrid,
    "qwen3_5_moe": qwen_hybrid,
    "qwen3_5_moe_text": qwen_hybrid,
    "qwen3_5_text": qwen_hybrid,
    "qwen3_next": qwen_hybrid,
    "qwen4_exp": qwen4_experimental,
    "qwen4_exp_text": qwen4_experimental,
    "zaya": zaya,
}
"""By ``model_type``, for configs that name no architecture."""
