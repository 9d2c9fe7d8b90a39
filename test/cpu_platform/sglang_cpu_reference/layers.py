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
    normed = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
    if self.weight is not None:
        normed = normed.mul_(self.weight.float())
    gate = g.float()
    gate = gate.sigmoid() if self.activation == "sigmoid" else F.silu(gate)
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
