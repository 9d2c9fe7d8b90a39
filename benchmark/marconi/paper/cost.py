"""What a node costs and what it saves: the paper's FLOPs and bytes, as exact integers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from sglang.srt.marconi_utils import (
    get_attn_flops,
    get_kvs_size,
    get_mamba1_flops,
    get_mamba_state_size,
    get_mlp_flops,
)

from paper.modes import Fixes


@dataclass(frozen=True)
class PaperModel:
    """A hybrid model as the paper counts it: fp16, Mamba-1 layers, plain multi-head attention.

    Layer counts, the width ``d`` of the model and ``n`` of its state. The defaults are the 7B
    hybrid of the paper's evaluation (specification 1).
    """

    num_ssm_layers: int = 24
    num_attn_layers: int = 4
    num_mlp_layers: int = 28
    d: int = 4096
    n: int = 128

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of one checkpoint of all SSM layers: S of the specification."""
        return self.num_ssm_layers * get_mamba_state_size(self.d, self.n)

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all attention layers: K of the specification."""
        return self.num_attn_layers * get_kvs_size(1, self.d)

    def node_bytes(self, own_tokens: int) -> int:
        """Bytes of one node: a checkpoint and the KV of its own segment, in tokens."""
        return self.state_bytes + self.kv_bytes_per_token * own_tokens

    def ssm_flops(self, tokens: int) -> int:
        """FLOPs of all SSM layers over this many tokens."""
        return self.num_ssm_layers * get_mamba1_flops(tokens, self.d, self.n)

    def attn_flops(self, tokens: int) -> int:
        """FLOPs of all attention layers over a sequence of this many tokens."""
        return self.num_attn_layers * get_attn_flops(tokens, self.d)

    def mlp_flops(self, tokens: int) -> int:
        """FLOPs of all MLP layers over this many tokens."""
        return self.num_mlp_layers * get_mlp_flops(tokens, self.d)

    def prefill_flops(self, tokens: int) -> int:
        """FLOPs of a prefill of this many tokens without any reuse."""
        return self.ssm_flops(tokens) + self.attn_flops(tokens) + self.mlp_flops(tokens)

    def saved_flops(self, parent_tokens: int, path_tokens: int, fixes: Fixes) -> int:
        """FLOPs a node saves beyond its parent; both lengths in tokens from the root.

        As published the MLP term subtracts attention FLOPs, so the result can be negative below
        parents of more than 8,192 tokens (specification 5; defect B1).
        """
        if fixes.mlp_of_parent:
            mlp_of_parent = self.mlp_flops(parent_tokens)
        else:
            mlp_of_parent = self.num_mlp_layers * get_attn_flops(parent_tokens, self.d)
        return (
            self.ssm_flops(path_tokens - parent_tokens)
            + self.attn_flops(path_tokens)
            - self.attn_flops(parent_tokens)
            + self.mlp_flops(path_tokens)
            - mlp_of_parent
        )

    def efficiency(self, parent_tokens: int, path_tokens: int, fixes: Fixes) -> float:
        """FLOPs saved per byte, the second term of the paper's score (specification 5)."""
        charged = path_tokens - parent_tokens if fixes.memory_of_segment else path_tokens
        return self.saved_flops(parent_tokens, path_tokens, fixes) / self.node_bytes(charged)
