"""FLOPs and bytes of a cached prefix, from the model's config.

Two models of the same thing stand side by side. ``ModelCost`` is exact for the model that is
served: ``cost_from_config`` adds it up layer by layer, ``cost_by_name`` does so for published
models, and ``pool_bytes`` reads the bytes off a running server. ``SeedCost`` is Marconi's own
accounting (arXiv:2411.19379) for a Mamba-1 hybrid with plain multi-head attention, kept under its
names for comparison with the paper.

Lengths are in tokens, D is the model's width, N the state's, memory is fp16. Needs neither torch
nor a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.costs.architectures import (
    UnknownArchitectureError,
    cost_from_config,
)
from sglang.srt.mem_cache.marconi.costs.families.shared import UnknownLayerError
from sglang.srt.mem_cache.marconi.costs.fields import MissingFieldError
from sglang.srt.mem_cache.marconi.costs.known_models import KNOWN_MODELS
from sglang.srt.mem_cache.marconi.costs.model import AttentionCount, ModelCost
from sglang.srt.mem_cache.marconi.costs.pools import PoolBytes, pool_bytes

__all__ = [
    "PAPER_7B",
    "PAPER_7B_NAME",
    "AttentionCount",
    "MissingFieldError",
    "ModelCost",
    "PoolBytes",
    "SeedCost",
    "UnknownArchitectureError",
    "UnknownLayerError",
    "cost_by_name",
    "cost_from_config",
    "get_attn_flops",
    "get_kvs_size",
    "get_mamba1_flops",
    "get_mamba_state_size",
    "get_mlp_flops",
    "known_model_names",
    "pool_bytes",
]


def get_attn_flops(l: int, d: int) -> int:  # noqa: E741
    """FLOPs of one attention layer over ``l`` tokens: projections and the full score square.

    Source: arXiv:2411.19379, after the Chinchilla paper (arXiv:2203.15556).
    """
    return 8 * l * d**2 + 4 * l**2 * d


def get_mlp_flops(l: int, d: int) -> int:  # noqa: E741
    """FLOPs of one MLP of width 4*D over ``l`` tokens (arXiv:2411.19379)."""
    return 16 * l * d**2


def get_mamba1_flops(l: int, d: int, n: int) -> int:  # noqa: E741
    """FLOPs of one Mamba-1 layer over ``l`` tokens, state width ``n`` (arXiv:2411.19379)."""
    return 12 * l * d**2 + 16 * l * d * n + 10 * l * d


def get_kvs_size(l: int, d: int) -> int:  # noqa: E741
    """Bytes of the keys and values of ``l`` tokens in one multi-head layer, fp16."""
    return 4 * d * l


def get_mamba_state_size(d: int, n: int) -> int:
    """Bytes of one layer's SSM state and convolution window, fp16."""
    return 2 * d * n + 8 * (2 * d + 2 * n)


@dataclass(frozen=True)
class SeedCost:
    """Marconi's accounting of one cached prefix, relative to its parent in the tree.

    Layer counts, the width ``d`` of the model and ``n`` of its state. A prefix of ``total_len``
    tokens hangs below a parent of ``parent_len`` tokens, whose state is taken to be there.
    """

    num_ssm_layers: int
    num_attn_layers: int
    num_mlp_layers: int
    d: int
    n: int

    def flops_savings_mamba(self, parent_len: int, total_len: int) -> int:
        """FLOPs saved in the SSM layers over the tokens below the parent."""
        segment = _segment(parent_len, total_len)
        return self.num_ssm_layers * get_mamba1_flops(segment, self.d, self.n)

    def flops_savings_attn(self, parent_len: int, total_len: int) -> int:
        """FLOPs saved in the attention layers: the whole prefix less the parent's."""
        _segment(parent_len, total_len)
        whole, above = get_attn_flops(total_len, self.d), get_attn_flops(parent_len, self.d)
        return self.num_attn_layers * (whole - above)

    def flops_savings_mlp(self, parent_len: int, total_len: int) -> int:
        """FLOPs saved in the MLPs: the whole prefix less the parent's MLPs.

        The published simulator subtracts the parent's attention FLOPs here, which rewards nodes
        below short parents and can turn negative below long ones.
        """
        _segment(parent_len, total_len)
        whole, above = get_mlp_flops(total_len, self.d), get_mlp_flops(parent_len, self.d)
        return self.num_mlp_layers * (whole - above)

    def flops_savings(self, parent_len: int, total_len: int) -> int:
        """FLOPs saved in all layers.

        Raises:
            ValueError: unless ``0 <= parent_len <= total_len``.
        """
        return (
            self.flops_savings_mamba(parent_len, total_len)
            + self.flops_savings_attn(parent_len, total_len)
            + self.flops_savings_mlp(parent_len, total_len)
        )

    def state_memory(self) -> int:
        """Bytes of one checkpoint of all SSM layers."""
        return self.num_ssm_layers * get_mamba_state_size(self.d, self.n)

    def total_memory(self, total_len: int) -> int:
        """Bytes of one checkpoint and of the KV of the whole path, as the paper divides by."""
        return self.state_memory() + self.num_attn_layers * get_kvs_size(total_len, self.d)

    def as_model_cost(self, name: str = "") -> ModelCost:
        """The same formulas as a ``ModelCost``: FLOPs of any token range in O(1)."""
        per_token = self.num_ssm_layers * get_mamba1_flops(1, self.d, self.n)
        per_token += self.num_attn_layers * 8 * self.d**2
        per_token += self.num_mlp_layers * get_mlp_flops(1, self.d)
        return ModelCost(
            a=per_token,
            b=self.num_attn_layers * 4 * self.d,
            kv_bytes_per_token=self.num_attn_layers * get_kvs_size(1, self.d),
            state_bytes=self.state_memory(),
            name=name,
            architecture="Mamba-1 hybrid",
        )


def _segment(parent_len: int, total_len: int) -> int:
    if not 0 <= parent_len <= total_len:
        raise ValueError(f"a parent of {parent_len} tokens is no prefix of {total_len} tokens")
    return total_len - parent_len


PAPER_7B_NAME = "marconi-7b"
PAPER_7B = SeedCost(num_ssm_layers=24, num_attn_layers=4, num_mlp_layers=28, d=4096, n=128)
"""The 7B hybrid of the paper's evaluation (arXiv:2411.19379)."""


def known_model_names() -> tuple[str, ...]:
    """What ``cost_by_name`` knows: Hugging Face repositories, and the paper's 7B."""
    return (PAPER_7B_NAME, *KNOWN_MODELS)


def cost_by_name(
    name: str,
    *,
    tp_size: int = 1,
    kv_dtype_bytes: int = 2,
    attention: AttentionCount = "square",
) -> ModelCost:
    """The cost of a published model, by repository or by the last part of its name; case-blind.

    ``tp_size``, ``kv_dtype_bytes`` and ``attention`` are those of ``cost_from_config``; the paper's
    model has its own bytes and counts the square, whatever they are.

    Raises:
        KeyError: if the model is not known; the message lists the known ones.
    """
    wanted = name.lower()
    if wanted == PAPER_7B_NAME:
        return PAPER_7B.as_model_cost(PAPER_7B_NAME)
    for repository, config in KNOWN_MODELS.items():
        if wanted in (repository.lower(), repository.lower().rpartition("/")[2]):
            return cost_from_config(
                config,
                tp_size=tp_size,
                kv_dtype_bytes=kv_dtype_bytes,
                attention=attention,
                name=repository,
            )
    raise KeyError(f"{name!r} is not a known model; known: {', '.join(known_model_names())}")
