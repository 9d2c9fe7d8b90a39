"""The causal depthwise convolution in front of a recurrent layer, with its rolling window.

A channel's output at token t is the dot product of its W weights with the inputs t-W+1 .. t; the
W-1 inputs before the first token come from the sequence's slot of the pool, which afterwards
holds the last W-1 inputs. Arithmetic is fp32, results have the dtype of the input.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = "silu",
    conv_states: torch.Tensor | None = None,
    has_initial_state: torch.Tensor | None = None,
    cache_indices: torch.Tensor | None = None,
    query_start_loc: torch.Tensor | None = None,
    seq_lens_cpu: list[int] | None = None,
    **unused: Any,
) -> torch.Tensor:
    """Convolve N packed sequences and roll their windows.

    x [D, T]; weight [D, W]; bias [D]; conv_states: the pool [slots, D, W-1];
    has_initial_state, cache_indices [N]; query_start_loc [N + 1]. Returns [D, T].
    """
    _refuse(unused)
    if conv_states is None or cache_indices is None or query_start_loc is None:
        raise NotImplementedError("causal_conv1d_fn needs a state pool and packed sequences")
    window = weight.shape[1] - 1
    offsets = query_start_loc.tolist()
    slots = cache_indices.long()
    before = conv_states.index_select(0, slots).float()
    if has_initial_state is None:
        before = torch.zeros_like(before)
    else:
        before = before * has_initial_state.view(-1, 1, 1)
    before = before.transpose(1, 2)

    # Token-major and with each sequence's window in front of it, every tap of the filter is one
    # shifted view over all sequences at once; outputs inside a window are never read.
    tokens = x.transpose(0, 1)
    count = len(offsets) - 1
    padded = torch.empty((offsets[-1] + count * window, x.shape[0]), dtype=torch.float32)
    after = torch.empty_like(before)
    for row in range(count):
        begin, end = offsets[row] + row * window, offsets[row + 1] + (row + 1) * window
        padded[begin : begin + window] = before[row]
        padded[begin + window : end] = tokens[offsets[row] : offsets[row + 1]]
        after[row] = padded[end - window : end]
    conv_states.index_copy_(0, slots, after.transpose(1, 2).to(conv_states.dtype))

    taps = weight.float()
    length = padded.shape[0] - window
    mixed = padded[:length] * taps[:, 0]
    for tap in range(1, window + 1):
        mixed.addcmul_(padded[tap : tap + length], taps[:, tap])
    if bias is not None:
        mixed += bias.float()
    mixed = _activate(mixed, activation)
    out = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    out[offsets[-1] :] = 0
    for row in range(count):
        shift = row * window
        out[offsets[row] : offsets[row + 1]] = mixed[
            offsets[row] + shift : offsets[row + 1] + shift
        ]
    return out.transpose(0, 1)


def causal_conv1d_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    conv_state_indices: torch.Tensor | None = None,
    **unused: Any,
) -> torch.Tensor:
    """Convolve one token for each of B sequences and roll their windows.

    x [B, D]; conv_state: the pool [slots, D, W-1]; weight [D, W]; conv_state_indices [B].
    Returns [B, D].
    """
    _refuse(unused)
    if conv_state_indices is None:
        raise NotImplementedError("causal_conv1d_update needs state indices")
    slots = conv_state_indices.long()
    window = torch.cat([conv_state.index_select(0, slots).float(), x.float().unsqueeze(-1)], dim=-1)
    conv_state.index_copy_(0, slots, window[..., 1:].to(conv_state.dtype))
    mixed = (window * weight.float()).sum(-1)
    if bias is not None:
        mixed += bias.float()
    return _activate(mixed, activation).to(x.dtype)


def _activate(x: torch.Tensor, activation: str | None) -> torch.Tensor:
    if activation is None:
        return x
    if activation in ("silu", "swish"):
        return F.silu(x, inplace=True)
    raise NotImplementedError(f"activation {activation!r} of a causal convolution")


def _refuse(unused: dict[str, Any]) -> None:
    """Reject options of speculative decoding; ignoring them would corrupt states silently."""
    given = sorted(name for name, value in unused.items() if value is not None)
    if given:
        raise NotImplementedError(f"causal convolution options without a CPU reference: {given}")
