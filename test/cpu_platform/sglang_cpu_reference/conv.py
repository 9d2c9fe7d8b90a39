"""The causal depthwise convolution in front of a recurrent layer, with its rolling window.

A channel's output at token t is the dot product of its W weights with the inputs t-W+1 .. t; the
W-1 inputs before the first token come from the sequence's slot of the pool, which afterwards
holds the last W-1 inputs. Arithmetic is fp32, results have the dtype of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F

from sglang_cpu_reference.drafts import chain, parents_of


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
    intermediate_conv_window: torch.Tensor | None = None,
    intermediate_state_indices: torch.Tensor | None = None,
    retrieve_next_token: torch.Tensor | None = None,
    retrieve_next_sibling: torch.Tensor | None = None,
    retrieve_parent_token: torch.Tensor | None = None,
    **unused: Any,
) -> torch.Tensor:
    """Convolve one token for each of B sequences and roll their windows.

    x [B, D]; conv_state: the pool [slots, D, W-1]; weight [D, W]; conv_state_indices [B].
    Returns [B, D].

    With ``intermediate_conv_window`` the n nodes of a tree of drafts for each sequence, x [B, D,
    n], and see `_verify`. The links of the trees are there where they branch; their parents [B, n]
    are then written to ``retrieve_parent_token``, for the recurrent layer behind.
    """
    _refuse(unused)
    if conv_state_indices is None:
        raise NotImplementedError("causal_conv1d_update needs state indices")
    slots = conv_state_indices.long()
    before = conv_state.index_select(0, slots).float()
    if intermediate_conv_window is None:
        window = torch.cat([before, x.float().unsqueeze(-1)], dim=-1)
        conv_state.index_copy_(0, slots, window[..., 1:].to(conv_state.dtype))
        mixed = (window * weight.float()).sum(-1)
        if bias is not None:
            mixed += bias.float()
        return _activate(mixed, activation).to(x.dtype)
    if intermediate_state_indices is None:
        raise NotImplementedError("drafts without rows for their windows")
    parents = chain(x.shape[0], x.shape[2])
    if retrieve_next_token is not None and retrieve_next_sibling is not None:
        parents = parents_of(retrieve_next_token, retrieve_next_sibling)
        if retrieve_parent_token is not None:
            retrieve_parent_token.copy_(parents)
    mixed, windows = _verify(x, before, weight, parents)
    rows = intermediate_state_indices[: x.shape[0]].long()
    intermediate_conv_window[rows, : x.shape[2]] = windows.to(intermediate_conv_window.dtype)
    if bias is not None:
        mixed += bias.float().view(1, -1, 1)
    return _activate(mixed, activation).to(x.dtype)


def _verify(
    x: torch.Tensor, before: torch.Tensor, weight: torch.Tensor, parents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each node of B trees convolved with its ancestors and the window before the tree.

    x [B, D, n]; before [B, D, W-1]; weight [D, W]; parents [B, n], -1 behind that window.
    Returns [B, D, n] and the windows after each node [B, n, D, W-1].
    """
    requests, nodes = torch.arange(x.shape[0]), x.shape[2]
    # SGLang hands in a transposed view, and views the result as if nothing had been transposed.
    mixed = torch.empty_like(x, dtype=torch.float32)
    windows = before.unsqueeze(1).repeat(1, nodes + 1, 1, 1)
    for node in range(nodes):
        above = windows[requests, parents[:, node] + 1]
        window = torch.cat([above, x[:, :, node : node + 1].float()], dim=-1)
        mixed[:, :, node] = (window * weight.float()).sum(-1)
        windows[:, node + 1] = window[..., 1:]
    return mixed, windows[:, 1:]


def with_its_parameters(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The function above of the same name, with the parameters of ``original``."""
    reference: dict[str, Callable[..., torch.Tensor]] = {
        "causal_conv1d_fn": causal_conv1d_fn,
        "causal_conv1d_update": causal_conv1d_update,
    }

    @wraps(original)
    def convolve(*args: Any, **kwargs: Any) -> torch.Tensor:
        return reference[original.__name__](*args, **kwargs)

    return convolve


def _activate(x: torch.Tensor, activation: str | None) -> torch.Tensor:
    if activation is None:
        return x
    if activation in ("silu", "swish"):
        return F.silu(x, inplace=True)
    raise NotImplementedError(f"activation {activation!r} of a causal convolution")


def _refuse(unused: dict[str, Any]) -> None:
    """Reject options that are not served; ignoring them would corrupt states silently."""
    given = sorted(name for name, value in unused.items() if value is not None)
    if given:
        raise NotImplementedError(f"causal convolution options without a CPU reference: {given}")
