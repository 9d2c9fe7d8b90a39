"""Sends latent attention (MLA) to the torch backend in its absorbed form.

The cache then holds one key for all heads, a token's latent beside its position's channels, and
the latent is its value too: grouped attention, which `attention` computes as any other. SGLang's
default for backends that it does not know takes a prompt's first tokens another way, by keys and
values that never come to the cache, where the torch backend looks for them.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Tell SGLang's attention layers; later calls do nothing."""
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry

    AttentionBackendRegistry.register("torch_native", absorbed)


def absorbed(attn: Any, forward_batch: Any) -> Any:
    """The form in which every batch of every layer attends."""
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
        AttnForwardMethod,
    )

    return AttnForwardMethod.MLA
