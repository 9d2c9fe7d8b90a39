"""Small layers that upstream gives to CPUs without AMX only as Triton kernels."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F


class _GatedNorm(Protocol):
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    activation: str
    eps: float


def gated_rms_norm(
    self: _GatedNorm,
    x: torch.Tensor,
    g: torch.Tensor,
    residual: torch.Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> torch.Tensor:
    """RMS-normalise x [..., D], then multiply by the activated gate g [..., D].

    A method of SGLang's `FusedRMSNormGated`, hence ``self``.
    """
    if residual is not None or prenorm or self.bias is not None:
        raise NotImplementedError("residual and bias in the gated RMS norm")
    return _gated_norm(self, x, g)


class _OptionallyGatedNorm(_GatedNorm, Protocol):
    group_size: int | None
    norm_before_gate: bool


def optionally_gated_rms_norm(
    self: _OptionallyGatedNorm, x: torch.Tensor, z: torch.Tensor | None = None
) -> torch.Tensor:
    """The same, a method of the gated RMS norm that Qwen3.5 uses."""
    if z is None or self.bias is not None or self.group_size or not self.norm_before_gate:
        raise NotImplementedError("an RMS norm without gate, with bias, of groups or gated before")
    return _gated_norm(self, x, z)


def _gated_norm(norm: _GatedNorm, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    normed = F.rms_norm(x.float(), (x.shape[-1],), eps=norm.eps)
    if norm.weight is not None:
        normed = normed.mul_(norm.weight.float())
    gate = g.float()
    gate = gate.sigmoid() if norm.activation == "sigmoid" else F.silu(gate)
    return normed.mul_(gate).to(x.dtype)


def gated_shared_expert(
    hidden_states: torch.Tensor, gate_weight: torch.Tensor, shared_output: torch.Tensor
) -> torch.Tensor:
    """sigmoid(hidden_states . gate_weight) * shared_output; [T, D], [D], [T, D] to [T, D]."""
    gate = (hidden_states.float() @ gate_weight.float()).sigmoid_().unsqueeze(-1)
    return (gate * shared_output).to(shared_output.dtype)


def add_gated_shared_expert(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    final_hidden_states: torch.Tensor,
) -> None:
    """Add the gated output of the shared expert [T, D] to that of the routed ones, in place."""
    final_hidden_states += gated_shared_expert(hidden_states, gate_weight, shared_output)


def multiply_by_sigmoid(x: torch.Tensor, gate: torch.Tensor) -> None:
    """x *= sigmoid(gate), both [T, D], in place."""
    x.mul_(gate.float().sigmoid().to(x.dtype).view(x.shape))


def normed_queries_and_keys(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    head_dim: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS-normalise each head of q [T, H * D] and k [T, G * D]; weights [D] are kept less one."""
    return _normed_heads(q, q_weight, eps, head_dim), _normed_heads(k, k_weight, eps, head_dim)


def normed_queries_keys_and_gate(
    q_gate: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    head_dim: int,
    num_heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same, where each head of q_gate [T, H * 2 * D] is a query and then its gate.

    Returns:
        Queries [T * H, D], keys [T * G, D], gates [T * H, D].
    """
    q, gate = q_gate.reshape(-1, num_heads, 2, head_dim).unbind(2)
    gates = gate.reshape(-1, head_dim).contiguous()
    return *normed_queries_and_keys(q, k, q_weight, k_weight, eps, head_dim), gates


def _normed_heads(x: torch.Tensor, weight: torch.Tensor, eps: float, head_dim: int) -> torch.Tensor:
    heads = x.reshape(-1, head_dim).float()
    return (F.rms_norm(heads, (head_dim,), eps=eps) * (1.0 + weight.float())).to(x.dtype)


def split_projections(
    qkvz: torch.Tensor,
    ba: torch.Tensor,
    num_heads_qk: int,
    num_heads_v: int,
    head_qk: int,
    head_v: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take rows of [q | k | v | z] and [b | a] apart.

    Returns:
        [T, q + k + v], z [T, num_heads_v, head_v], b and a [T, num_heads_v]; copies.
    """
    values = num_heads_v * head_v
    keys = num_heads_qk * head_qk
    qkv, z = torch.tensor_split(qkvz, [2 * keys + values], dim=-1)
    b, a = torch.tensor_split(ba, [num_heads_v], dim=-1)
    return qkv.clone(), z.reshape(-1, num_heads_v, head_v).clone(), b.clone(), a.clone()
