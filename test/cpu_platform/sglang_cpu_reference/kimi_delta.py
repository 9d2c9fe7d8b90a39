"""Kimi delta attention: the gated delta rule with a decay for each channel of a key.

Source: Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture", arXiv 2510.26692,
equation 1 for the recurrence; the chunked form is that of `gated_delta` with its decays inside the
products of keys. Per head, with a state S of shape [V, K] and alpha_t = exp(g_t) of shape [K]::

    S_t = S_{t-1} diag(alpha_t) (I - beta_t k_t k_t^T) + beta_t v_t k_t^T
    o_t = scale * S_t q_t

All arithmetic is fp32; outputs come in the dtype of the inputs, states in the dtype of the pool.
Sizes: T tokens, N sequences, NC chunks of C tokens, H heads, K and V the widths of a key and of a
value.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from sglang_cpu_reference.chunks import ChunkPlan
from sglang_cpu_reference.gated_delta import CHUNK_SIZE, l2_normalize, scan

# Tokens that are computed side by side. Their keys are compared channel by channel, so a longer
# chunk costs more for each token; SGLang's chunks are whole numbers of these.
STEP = 16


def log_decay(a: torch.Tensor, A_log: torch.Tensor, dt_bias: torch.Tensor) -> torch.Tensor:
    """g = -exp(A_log) softplus(a + dt_bias); a [T, H, K], A_log [H], dt_bias [H * K]."""
    rate = A_log.float().exp().view(-1, 1)
    return F.softplus(a.float() + dt_bias.float().view(a.shape[1:])) * -rate


def chunk_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    beta_is_raw: bool = False,
    output_intermediate_states: bool = False,
    track_state: torch.Tensor | None = None,
    track_chunk_idx: torch.Tensor | None = None,
    **unused: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Run N packed sequences from their slots of the pool and write their last states back.

    q, k [1, T, H, K]; v [1, T, H, V]; g [1, T, H, K] and beta [1, T, H] before their activations;
    initial_state: the pool [slots, H, V, K]; initial_state_indices [N]; cu_seqlens [N + 1].
    track_state [N, H, V, K] receives the state before chunk track_chunk_idx [N] of each sequence,
    none where that is negative.
    Returns the output [1, T, H, V], and on demand the states before each of SGLang's chunks of 64
    tokens, [1, chunks, H, V, K].
    """
    _refuse(unused)
    if not (use_qk_l2norm_in_kernel and beta_is_raw):
        raise NotImplementedError("KDA without its norms or with an activated beta")
    offsets = tuple(cu_seqlens.tolist())
    plan = ChunkPlan(offsets, STEP)
    slots = initial_state_indices.long()
    out = torch.zeros_like(v[0], memory_format=torch.contiguous_format)
    last, before = chunked(
        l2_normalize(q[0].float()) * q.shape[-1] ** -0.5,
        l2_normalize(k[0].float()),
        v[0],
        log_decay(g[0], A_log, dt_bias),
        beta[0].float().sigmoid(),
        initial_state.index_select(0, slots).float(),
        plan,
        out,
    )
    initial_state.index_copy_(0, slots, last.to(initial_state.dtype))
    ratio = CHUNK_SIZE // STEP
    if track_state is not None and track_chunk_idx is not None:
        for row, chunk in enumerate(track_chunk_idx.tolist()):
            if chunk >= 0:
                track_state[row] = before[plan.first[row] + chunk * ratio]
    if not output_intermediate_states:
        return out.unsqueeze(0)
    starts = [
        first + step
        for first, count in zip(plan.first, plan.counts, strict=False)
        for step in range(0, count, ratio)
    ]
    return out.unsqueeze(0), before[starts].unsqueeze(0)


def chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    plan: ChunkPlan,
    out: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill ``out`` [T, H, V]; return the last states [N, H, V, K] and those before each chunk.

    q (already scaled), k, g [T, H, K]; v [T, H, V]; beta [T, H]; state [N, H, V, K].

    Within a chunk, with G_i [K] the sum of g up to token i, the written values u_i obey::

        u_i = beta_i (v_i - S_0 (exp(G_i) k_i) - sum_{j<i} (k_i . exp(G_i - G_j) k_j) u_j)
    """
    qc, kc, vc, gc = (plan.split(x).transpose(1, 2) for x in (q, k, v, g))
    bc = plan.split(beta).transpose(1, 2).unsqueeze(-1)
    decay = gc.cumsum(-2)
    # exp(G_i - G_j) k_j for j <= i, [NC, H, C, C, K]. The two factors apart would overflow; above
    # the diagonal the clamp keeps finite what is then discarded.
    reached = (decay.unsqueeze(-2) - decay.unsqueeze(-3)).clamp_(max=0.0).exp_()
    reached *= kc.unsqueeze(-3)
    system = (reached @ kc.unsqueeze(-1)).squeeze(-1).mul_(bc)
    mixing = (reached @ qc.unsqueeze(-1)).squeeze(-1).tril_()
    grown = decay.exp()
    right = torch.cat([vc, grown * kc], dim=-1).mul_(bc)
    # Only what lies below the diagonal is read.
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    width = v.shape[-1]
    probes = torch.cat([solved[..., width:], grown * qc], dim=-2)
    end = decay[..., -1:, :]
    carried = (end - decay).exp_().mul_(kc)
    values = solved[..., :width].contiguous()
    return scan(values, probes, mixing, carried, end.exp(), state, plan, out)


def step(
    A_log: torch.Tensor,
    a: torch.Tensor,
    dt_bias: torch.Tensor,
    softplus_beta: float,
    softplus_threshold: float,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    b: torch.Tensor,
    initial_state_source: torch.Tensor,
    initial_state_indices: torch.Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    is_kda: bool = False,
    disable_state_update: bool = False,
    **unused: Any,
) -> torch.Tensor:
    """One token for each of B sequences; their slots of the pool advance in place.

    q, k [1, B, H, K]; v [1, B, H, V]; a [B, H * K]; b [1, B, H]; initial_state_source: the pool
    [slots, H, V, K]; initial_state_indices [B]. Returns [1, B, H, V].
    """
    _refuse({name: value for name, value in unused.items() if name != "cu_seqlens"})
    if disable_state_update or not (is_kda and use_qk_l2norm_in_kernel):
        raise NotImplementedError("drafts of KDA models, or KDA without its norms")
    if (softplus_beta, softplus_threshold) != (1.0, 20.0):
        raise NotImplementedError("another softplus than the usual one")
    query, key = l2_normalize(torch.stack([q[0], k[0]]).float()).unsqueeze(-1).unbind(0)
    alpha = log_decay(a.view(k.shape[1:]), A_log, dt_bias).exp_().unsqueeze(-2)
    strength = b[0].float().sigmoid()[..., None, None]

    slots = initial_state_indices.long()
    state = initial_state_source.index_select(0, slots).float().mul_(alpha)
    written = (v[0].float().unsqueeze(-1) - state @ key).mul_(strength)
    state += written * key.transpose(-1, -2)
    initial_state_source.index_copy_(0, slots, state.to(initial_state_source.dtype))
    out: torch.Tensor = (state @ query).squeeze(-1) * q.shape[-1] ** -0.5
    return out.to(v.dtype).unsqueeze(0)


def _refuse(unused: dict[str, Any]) -> None:
    """Reject options that are not served; ignoring them would corrupt states silently."""
    given = sorted(name for name, value in unused.items() if value not in (None, False))
    if given:
        raise NotImplementedError(f"options of KDA without a CPU reference: {given}")
