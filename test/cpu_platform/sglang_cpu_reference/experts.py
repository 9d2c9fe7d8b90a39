"""Routed experts for the few tokens of a decode step, without a loop over the experts.

Upstream sorts the tokens by expert and multiplies expert by expert: right for a prefill, but a
decode step of a small model then spends most of its time in calls, not in arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

import torch
import torch.nn.functional as F

# Up to so many rows computed in vain (tokens times experts) beat the loop over experts.
DENSE_ROWS = 128


class Layer(Protocol):
    """What is read of SGLang's expert layer: w13 [E, 2F, D], gate before up, and w2 [E, D, F]."""

    w13_weight: torch.Tensor
    w2_weight: torch.Tensor


Forward = Callable[[Layer, torch.Tensor, Any, Any], torch.Tensor]


def moe_forward_native(original: Forward) -> Forward:
    """Wrap SGLang's function: few tokens and plain SwiGLU experts here, the rest there."""

    def forward(
        layer: Layer, x: torch.Tensor, topk_output: Any, moe_runner_config: Any
    ) -> torch.Tensor:
        if x.shape[0] * layer.w13_weight.shape[0] > DENSE_ROWS or not _is_plain(
            layer, moe_runner_config
        ):
            return original(layer, x, topk_output, moe_runner_config)
        weights, experts, _ = topk_output
        return dense_experts(x, layer.w13_weight, layer.w2_weight, weights, experts)

    return forward


def dense_experts(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
) -> torch.Tensor:
    """All experts for all tokens; the router's weights are zero where it chose another.

    x [T, D]; w13 [E, 2F, D]: gate, then up; w2 [E, D, F]; weights, experts [T, k]. Returns [T, D].
    """
    count = w13.shape[0]
    gate, up = torch.matmul(x, w13.transpose(1, 2)).chunk(2, dim=-1)
    each = torch.bmm(F.silu(gate).mul_(up), w2.transpose(1, 2))
    share = weights.new_zeros((x.shape[0], count), dtype=torch.float32)
    share.scatter_add_(1, experts.long(), weights.float())
    return torch.einsum("etd,te->td", each.float(), share).to(x.dtype)


def scales_routes(original: Callable[..., None]) -> Callable[..., None]:
    """The constructor of Kimi-Linear's experts, whose router then applies their common factor.

    A GPU's kernel applies it to what the experts return. SGLang's torch code does not, and most
    models see to it themselves: this one does not.
    """

    @wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.topk.topk_config.apply_routed_scaling_factor_on_output = True

    return __init__


def _is_plain(layer: Layer, config: Any) -> bool:
    return (
        config.activation == "silu"
        and config.gemm1_alpha is None
        and config.gemm1_clamp_limit is None
        and not config.apply_router_weight_on_input
        and getattr(layer, "w13_weight_bias", None) is None
        and getattr(layer, "w2_weight_bias", None) is None
    )
