"""Writes tiny random hybrid models with a tokenizer, from code alone and the same every time.

    python -m sglang_cpu_reference.tiny_models OUT --model qwen3-next --dtype bfloat16
    python -m sglang_cpu_reference.tiny_models OUT

The first writes one model into OUT, the second all of them into OUT/<model>-<dtype>. Nothing is
downloaded and nothing of the machine is read. The models hold 64k tokens of context.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PAD_ID, START_ID, END_ID = range(len(SPECIAL_TOKENS))
VOCABULARY = 256 + len(SPECIAL_TOKENS)
# Tensor-parallel shards of embedding and head want round sizes; the rest stays unused.
PADDED_VOCABULARY = 320
CONTEXT = 65536
SEED = 0
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> Any:
    """A tokenizer of one token per byte, so that any text has a length known in advance."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL_TOKENS[END_ID],
        pad_token=SPECIAL_TOKENS[PAD_ID],
        model_max_length=CONTEXT,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_qwen3_next() -> Any:
    """Three GDN layers and one of gated attention, each with four experts and a shared one."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    return Qwen3NextForCausalLM(
        Qwen3NextConfig(
            vocab_size=PADDED_VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            # Keys and values of different width: a transposed state cannot pass unnoticed.
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=32,
            linear_value_head_dim=48,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            shared_expert_intermediate_size=64,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            pad_token_id=PAD_ID,
            bos_token_id=START_ID,
            eos_token_id=END_ID,
        )
    )


def make_falcon_h1() -> Any:
    """Four layers of Mamba2 beside grouped-query attention, dense MLP."""
    from transformers import FalconH1Config, FalconH1ForCausalLM

    return FalconH1ForCausalLM(
        FalconH1Config(
            vocab_size=PADDED_VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            mamba_d_ssm=192,
            mamba_n_heads=6,
            mamba_d_head=32,
            mamba_n_groups=2,
            mamba_d_state=48,
            mamba_d_conv=4,
            mamba_chunk_size=64,
            mamba_rms_norm=True,
            mamba_norm_before_gate=False,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            pad_token_id=PAD_ID,
            bos_token_id=START_ID,
            eos_token_id=END_ID,
        )
    )


NEMOTRON_LAYERS = "M*M-M*M*-"


def make_nemotron_h() -> Any:
    """Layers of Mamba2, of attention and of MLP, each with a residual of its own."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    return NemotronHForCausalLM(
        NemotronHConfig(
            vocab_size=PADDED_VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            hybrid_override_pattern=NEMOTRON_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            mamba_num_heads=8,
            mamba_head_dim=32,
            n_groups=2,
            ssm_state_size=48,
            conv_kernel=4,
            expand=2,
            chunk_size=64,
            # transformers clamps steps to it in prefill, SGLang does not.
            time_step_min=1e-12,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            pad_token_id=PAD_ID,
            bos_token_id=START_ID,
            eos_token_id=END_ID,
        )
    )


def make_qwen3_5() -> Any:
    """Four GDN layers and three of gated attention, which two pipeline stages share unevenly."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    return Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            vocab_size=PADDED_VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=7,
            full_attention_interval=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=32,
            linear_value_head_dim=48,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            pad_token_id=PAD_ID,
            bos_token_id=START_ID,
            eos_token_id=END_ID,
        )
    )


def make_lfm2() -> Any:
    """Four short convolutions and two layers of grouped-query attention, dense MLP."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    return Lfm2ForCausalLM(
        Lfm2Config(
            vocab_size=PADDED_VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            block_auto_adjust_ff_dim=False,
            num_hidden_layers=6,
            full_attn_idxs=[2, 5],
            num_attention_heads=4,
            num_key_value_heads=2,
            conv_L_cache=3,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            pad_token_id=PAD_ID,
            bos_token_id=START_ID,
            eos_token_id=END_ID,
        )
    )


def make_granite_hybrid() -> Any:
    """Three layers of Mamba2 and one of attention, each with four experts and a shared one."""
    from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

    return GraniteMoeHybridForCausalLM(
        GraniteMoeHybridConfig(
            vocab_size=PADDED_VOCABULARY,
            hidden_size=128,
            intermediate_size=64,
            shared_intermediate_size=128,
            num_hidden_layers=4,
            layer_types=["mamba", "mamba", "attention", "mamba"],
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_multiplier=32**-0.5,
            embedding_multiplier=1.0,
            logits_scaling=1.0,
            residual_multiplier=0.5,
            mamba_n_heads=8,
            mamba_d_head=32,
            # As published ones have it: with more groups SGLang and transformers norm apart.
            mamba_n_groups=1,
            mamba_d_state=48,
            mamba_d_conv=4,
            mamba_expand=2,
            mamba_chunk_size=64,
            num_local_experts=4,
            num_experts_per_tok=2,
            position_embedding_type="rope",
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            pad_token_id=PAD_ID,
            bos_token_id=START_ID,
            eos_token_id=END_ID,
        )
    )


#: Layers of `kimi-linear` as its published configs count them, from one.
KIMI_LAYERS = {"kda_layers": [1, 2, 4], "full_attn_layers": [3]}
KIMI_DELTA = {"num_heads": 4, "head_dim": 32, "short_conv_kernel_size": 4}


def make_kimi_linear() -> Any:
    """Three layers of Kimi delta attention and one of latent attention; dense, then experts."""
    from transformers import KimiLinearConfig, KimiLinearForCausalLM

    network = KimiLinearForCausalLM(
        KimiLinearConfig(
            vocab_size=PADDED_VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            # All of different width: a mistaken part of the latent cannot pass unnoticed.
            kv_lora_rank=40,
            qk_nope_head_dim=32,
            qk_rope_head_dim=16,
            v_head_dim=24,
            num_local_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            n_shared_experts=1,
            # SGLang norms the outputs of delta attention with it, whatever it is here.
            rms_norm_eps=1e-5,
            linear_attn_config=KIMI_LAYERS | KIMI_DELTA,
            first_k_dense_replace=1,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            pad_token_id=PAD_ID,
            bos_token_id=START_ID,
            eos_token_id=END_ID,
        )
    )
    for layer in network.model.layers[1:]:
        # Zero in a new model: which experts it chooses would be left unseen.
        torch.nn.init.uniform_(layer.mlp.gate.e_score_correction_bias, -0.2, 0.2)
    return network


# What SGLang's own config classes read and transformers 5 does not write.
EXTRA_CONFIG: dict[str, dict[str, Any]] = {
    "qwen3-next": {"full_attention_interval": 4},
    "falcon-h1": {},
    "qwen3.5": {"full_attention_interval": 2},
    "qwen3.5-mtp": {"full_attention_interval": 2},
    "lfm2": {},
    "granite-hybrid": {},
    "kimi-linear": {
        "linear_attn_config": KIMI_LAYERS | KIMI_DELTA,
        "first_k_dense_replace": 1,
        "mla_use_nope": True,
        "max_position_embeddings": CONTEXT,
    },
    "nemotron-h": {
        "hybrid_override_pattern": NEMOTRON_LAYERS,
        "layers_block_type": None,
        "mamba_n_groups": 2,
    },
}
#: What transformers writes of a model under another name than published checkpoints, and theirs.
RENAMED = {"kimi-linear": ("layers.0.block_sparse_moe.", "layers.0.mlp.")}
#: The one with a head that drafts (`--speculative-algorithm NEXTN`).
WITH_DRAFTS = "qwen3.5-mtp"
#: How much of what a token leads to its embedding decides: about half of all choices are such that
#: the token before suffices, so that about half of all drafts are right.
LAST_TOKEN = 64.0
#: The same in the head that drafts, which follows the last token nearly always.
LAST_TOKEN_OF_DRAFTS = 8.0
MODELS: dict[str, Callable[[], Any]] = {
    "qwen3-next": make_qwen3_next,
    "falcon-h1": make_falcon_h1,
    "nemotron-h": make_nemotron_h,
    "qwen3.5": make_qwen3_5,
    "qwen3.5-mtp": make_qwen3_5,
    "lfm2": make_lfm2,
    "granite-hybrid": make_granite_hybrid,
    "kimi-linear": make_kimi_linear,
}


def write_model(directory: Path, model: str, dtype: str) -> None:
    """Write config, weights, tokenizer and chat template of one tiny model."""
    torch.manual_seed(SEED)
    network = MODELS[model]().to(DTYPES[dtype])
    spread_weights(network)
    head = drafting_head(network) if model == WITH_DRAFTS else {}
    network.save_pretrained(directory)
    change_weights(directory, head, RENAMED.get(model))
    make_tokenizer().save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text()) | EXTRA_CONFIG[model]
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    print(f"{model} ({dtype}) is in {directory}")


@torch.no_grad()
def spread_weights(network: torch.nn.Module) -> None:
    """Draw every matrix wide enough that outputs depend on the whole context.

    The usual 0.02 leaves a tiny model nearly linear: its logits barely differ between prompts,
    and a wrong state would hide within rounding.
    """
    generator = torch.Generator().manual_seed(SEED)
    for parameter in network.parameters():
        if parameter.dim() >= 2:
            fan_in = parameter.shape[-1]
            drawn = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
            parameter.copy_(drawn.to(parameter.dtype))


@torch.no_grad()
def drafting_head(network: Any) -> dict[str, torch.Tensor]:
    """Weights of a head that guesses the token after next, for Qwen3.5; transformers has none.

    Random models say what nobody can guess. So the network's embeddings are made to decide half of
    what it says, and the head's to decide nearly all.
    """
    embeddings = network.model.embed_tokens.weight
    embeddings *= LAST_TOKEN
    width = embeddings.shape[1]
    generator = torch.Generator().manual_seed(SEED + 1)
    whole = next(one for one in network.model.layers if hasattr(one, "self_attn"))
    head = {f"layers.0.{name}": torch.zeros_like(one) for name, one in whole.state_dict().items()}
    norms = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    head |= {f"{name}.weight": embeddings.new_zeros(width) for name in norms}
    head["fc.weight"] = embeddings.new_zeros(width, 2 * width)
    for weight in head.values():
        if weight.dim() == 2:
            drawn = torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5
            weight.copy_(drawn.to(weight.dtype))
    head["fc.weight"][:, :width] += LAST_TOKEN_OF_DRAFTS * torch.eye(width, dtype=embeddings.dtype)
    return {f"mtp.{name}": weight for name, weight in head.items()}


def change_weights(
    directory: Path, added: dict[str, torch.Tensor], renamed: tuple[str, str] | None
) -> None:
    """Put weights that transformers does not know into a model that it wrote, and rename others."""
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    if not (added or renamed):
        return
    weights = {**load_file(path), **added}
    if renamed:
        weights = {name.replace(*renamed): weight for name, weight in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, metavar="OUT")
    parser.add_argument("--model", choices=sorted(MODELS), help="this one, into OUT itself")
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), help="bfloat16 if --model is given, else both"
    )
    options = parser.parse_args(arguments)
    if options.model:
        write_model(options.directory, options.model, options.dtype or "bfloat16")
        return
    for model in MODELS:
        for dtype in (options.dtype,) if options.dtype else DTYPES:
            write_model(options.directory / f"{model}-{dtype}", model, dtype)


if __name__ == "__main__":
    main()
