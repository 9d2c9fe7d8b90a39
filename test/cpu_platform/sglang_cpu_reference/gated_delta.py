"""The gated delta rule: a chunked form for prefill and a batched step for decode.

Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464, equation 10 for the
recurrence and section 3.3 for the chunked (WY) form; the notation here is theirs.

Per head, with a state S of shape [V, K], decay alpha_t = exp(g_t) and writing strength beta_t::

    S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T
    o_t = scale * S_t q_t

All arithmetic is fp32; outputs come in the dtype of the inputs, states in the dtype of the pool.
Sizes: T tokens, N sequences, NC chunks of C tokens, H key heads, HV value heads (a multiple of
H; value head h reads key head h // (HV // H)), K and V the widths of a key and of a value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sglang_cpu_reference.chunks import ChunkPlan, plan_chunks
from sglang_cpu_reference.drafts import chain

# SGLang snapshots states on this grid (`mamba_chunk_size`, which the GDN models leave at 64).
CHUNK_SIZE = 64
L2_EPSILON = 1e-6


def gates(
    A_log: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dt_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log decay g = -exp(A_log) softplus(a + dt_bias) and strength beta = sigmoid(b).

    A_log, dt_bias [HV]; a, b [T, HV]; both results fp32 [1, T, HV].
    """
    g = F.softplus(a.float() + dt_bias.float()).mul_(A_log.float().exp().neg_())
    return g.unsqueeze(0), b.float().sigmoid().unsqueeze(0)


def l2_normalize(x: torch.Tensor) -> torch.Tensor:
    """Scale the last axis to length one."""
    scaled: torch.Tensor = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPSILON)
    return scaled


def prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    cu_seqlens: torch.Tensor,
    head_first: bool,
    use_qk_l2norm_in_kernel: bool,
    initial_state_indices: torch.Tensor,
) -> tuple[torch.Tensor, None, torch.Tensor]:
    """Run N packed sequences from their slots of the pool and write their last states back.

    q, k [1, T, H, K]; v [1, T, HV, V]; g, beta [1, T, HV]; initial_state: the pool
    [slots, HV, V, K]; cu_seqlens [N + 1]; initial_state_indices [N].
    Returns the output [1, T, HV, V], None, and the states before each chunk [1, NC, HV, V, K].
    """
    if head_first:
        raise NotImplementedError("head_first layouts have no CPU reference")
    queries, keys = q.squeeze(0).float(), k.squeeze(0).float()
    if use_qk_l2norm_in_kernel:
        queries, keys = l2_normalize(queries), l2_normalize(keys)
    plan = plan_chunks(cu_seqlens, CHUNK_SIZE)
    slots = initial_state_indices.long()
    out = torch.zeros_like(v.squeeze(0))
    last, before = chunked(
        queries * q.shape[-1] ** -0.5,
        keys,
        v.squeeze(0),
        g.squeeze(0),
        beta.squeeze(0),
        initial_state.index_select(0, slots).float(),
        plan,
        out,
    )
    initial_state.index_copy_(0, slots, last.to(initial_state.dtype))
    return out.unsqueeze(0), None, before.unsqueeze(0)


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
    """Fill ``out`` [T, HV, V]; return the last states [N, HV, V, K] and those before each chunk.

    q (already scaled), k [T, H, K]; v [T, HV, V]; g, beta [T, HV]; state [N, HV, V, K].

    Within a chunk, with G_i the sum of g up to token i, the written values u_i obey::

        u_i = beta_i (v_i - exp(G_i) S_0 k_i - sum_{j<i} exp(G_i - G_j) (k_i . k_j) u_j)

    a unit lower triangular system (I + A) U = diag(beta) (V - diag(exp G) K S_0^T). It is solved
    for all chunks at once as U = U_0 - W S_0^T; only S_0 then passes from chunk to chunk.
    """
    group = v.shape[1] // q.shape[1]
    # [NC, C, H, K] to [NC, H, 1, C, K]: a key head serves its whole group by broadcasting.
    qc = plan.split(q).transpose(1, 2).unsqueeze(2)
    kc = plan.split(k).transpose(1, 2).unsqueeze(2)
    vc = _by_head(plan.split(v), group)
    bc = _by_head(plan.split(beta), group).unsqueeze(-1)
    decay = _by_head(plan.split(g), group).cumsum(-1)

    # exp(G_i - G_j) for j <= i and zero above; the clamp keeps the discarded half finite.
    within = (decay.unsqueeze(-1) - decay.unsqueeze(-2)).clamp_(max=0.0).exp_().tril_()
    keys_t = kc.transpose(-1, -2)
    system = (within * (kc @ keys_t)).mul_(bc)
    grown = decay.exp().unsqueeze(-1)
    right = torch.cat([vc, grown * kc], dim=-1).mul_(bc)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    width = v.shape[-1]
    values, from_state = solved[..., :width], solved[..., width:]
    mixing = within.mul_(qc @ keys_t)
    # W and diag(exp G) Q meet the same S_0, so one product serves both.
    probes = torch.cat([from_state, grown * qc], dim=-2).flatten(1, 2)
    left = (decay[..., -1:] - decay).exp_().unsqueeze(-1)
    carried = (left * kc).flatten(1, 2)
    fade = decay[..., -1].exp().flatten(1, 2)[..., None, None]

    return scan(
        values.flatten(1, 2).contiguous(), probes, mixing.flatten(1, 2), carried, fade, state, plan,
        out,
    )  # fmt: skip


def scan(
    values: torch.Tensor,
    probes: torch.Tensor,
    mixing: torch.Tensor,
    carried: torch.Tensor,
    fade: torch.Tensor,
    state: torch.Tensor,
    plan: ChunkPlan,
    out: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pass states from chunk to chunk; fill ``out``, return last states and those before each.

    values [NC, HV, C, V]: U_0, overwritten; probes [NC, HV, 2C, K]: W over the queries, faded to
    their tokens; mixing [NC, HV, C, C]: what each token reads of U; carried [NC, HV, C, K]: the
    keys, faded to the chunk's end; fade: of S_0 over a chunk, as it multiplies [NC, HV, V, K].
    """
    chunk = plan.size
    outputs = torch.empty_like(values)
    before = torch.empty((plan.total, *state.shape[1:]), dtype=torch.float32)
    order = torch.tensor(plan.longest_first, dtype=torch.long)
    last = state.clone()
    running = state[order]
    for count, where in plan.steps():
        current = running[:count]
        before[where] = current
        seen = probes[where] @ current.transpose(-1, -2)
        written = values[where] - seen[..., :chunk, :]
        values[where] = written
        outputs[where] = seen[..., chunk:, :]
        running[:count] = current * fade[where] + written.transpose(-1, -2) @ carried[where]
    last[order] = running
    outputs += mixing @ values
    plan.join_into(outputs.transpose(1, 2), out)
    return last, before


def _by_head(chunks: torch.Tensor, group: int) -> torch.Tensor:
    """[NC, C, HV, ...] to [NC, H, group, C, ...]."""
    swapped = chunks.transpose(1, 2)
    shape = (swapped.shape[0], swapped.shape[1] // group, group, *swapped.shape[2:])
    return swapped.reshape(shape)


def decode(
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    initial_state_source: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    use_qk_l2norm_in_kernel: bool,
    softplus_beta: float = 1.0,
    softplus_threshold: float = 20.0,
) -> torch.Tensor:
    """One token for each of B sequences; their slots of the pool advance in place.

    q, k [1, B, H, K]; v [1, B, HV, V]; a, b [B, HV]; initial_state_source: the pool
    [slots, HV, V, K]; initial_state_indices [B]. Returns [1, B, HV, V].
    """
    heads = v.shape[2]
    group = heads // q.shape[2]
    # Queries and keys are normalised together: at this size the number of calls is the cost.
    pair = torch.stack([q[0], k[0]]).float()
    if use_qk_l2norm_in_kernel:
        pair = l2_normalize(pair)
    if group > 1:
        pair = pair.repeat_interleave(group, dim=2)
    query, key = pair[0], pair[1].unsqueeze(-1)
    gate = F.softplus(a.float() + dt_bias.float(), softplus_beta, softplus_threshold)
    alpha = (gate * A_log.float().exp().neg_()).exp_().view(-1, heads, 1, 1)
    strength = b.float().sigmoid().view(-1, heads, 1, 1)

    slots = initial_state_indices.long()
    state = initial_state_source.index_select(0, slots).float().mul_(alpha)
    written = (v[0].float().unsqueeze(-1) - state @ key).mul_(strength)
    state += written * key.transpose(-1, -2)
    initial_state_source.index_copy_(0, slots, state.to(initial_state_source.dtype))
    out: torch.Tensor = (state @ query.unsqueeze(-1)).squeeze(-1) * q.shape[-1] ** -0.5
    return out.to(v.dtype).unsqueeze(0)


def decode_or_verify(
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    initial_state_source: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    use_qk_l2norm_in_kernel: bool,
    softplus_beta: float = 1.0,
    softplus_threshold: float = 20.0,
    is_kda: bool = False,
    disable_state_update: bool = False,
    intermediate_states_buffer: torch.Tensor | None = None,
    intermediate_state_indices: torch.Tensor | None = None,
    cache_steps: int | None = None,
    retrieve_parent_token: torch.Tensor | None = None,
) -> torch.Tensor:
    """`decode`, or where there is a buffer for the states after each draft, `verify`.

    Raises:
        NotImplementedError: gates of each channel, or a verification of another kind.
    """
    if is_kda or disable_state_update != (intermediate_states_buffer is not None):
        raise NotImplementedError("KDA, and verification that keeps no states, have no reference")
    if intermediate_states_buffer is None:
        return decode(
            A_log, dt_bias, q, k, v, a, b, initial_state_source, initial_state_indices,
            cu_seqlens, use_qk_l2norm_in_kernel, softplus_beta, softplus_threshold,
        )  # fmt: skip
    if cache_steps is None or intermediate_state_indices is None or not use_qk_l2norm_in_kernel:
        raise NotImplementedError("verification without steps, rows or normed queries and keys")
    return verify(
        A_log, dt_bias, q, k, v, a, b, initial_state_source, initial_state_indices,
        intermediate_states_buffer, intermediate_state_indices, cache_steps,
        retrieve_parent_token, softplus_beta, softplus_threshold,
    )  # fmt: skip


def verify(
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    pool: torch.Tensor,
    slots: torch.Tensor,
    kept: torch.Tensor,
    kept_rows: torch.Tensor,
    nodes: int,
    parents: torch.Tensor | None,
    softplus_beta: float = 1.0,
    softplus_threshold: float = 20.0,
) -> torch.Tensor:
    """The n nodes of B trees of drafts, each from its parent's state; the pool stays as it is.

    q, k [1, B * n, H, K]; v [1, B * n, HV, V]; a, b [B * n, HV]; pool [slots, HV, V, K]; slots
    [B]. The state after node i of request b goes to kept[kept_rows[b], i], [rows, n, HV, V, K].
    parents [B, n] are -1 where a node follows the pool's state; None says that nodes follow one
    another. Returns [1, B * n, HV, V].
    """
    heads, width = v.shape[2], q.shape[-1]
    group = heads // q.shape[2]
    count = q.shape[1] // nodes
    pair = l2_normalize(torch.stack([q[0], k[0]]).float())
    if group > 1:
        pair = pair.repeat_interleave(group, dim=2)
    query, key = pair.view(2, count, nodes, heads, width).unbind(0)
    value = v[0].float().view(count, nodes, heads, -1)
    gate = F.softplus(a.float() + dt_bias.float(), softplus_beta, softplus_threshold)
    alpha = (gate * A_log.float().exp().neg_()).exp_().view(count, nodes, heads, 1, 1)
    strength = b.float().sigmoid().view(count, nodes, heads, 1, 1)

    before = pool.index_select(0, slots[:count].long()).float()
    # Place 0 is the state before the drafts, where a parent of -1 leads.
    states = before.unsqueeze(1).repeat(1, nodes + 1, 1, 1, 1)
    above = chain(count, nodes) if parents is None else parents[:count].long()
    requests = torch.arange(count)
    out = torch.empty_like(value)
    for node in range(nodes):
        state = states[requests, above[:, node] + 1] * alpha[:, node]
        one = key[:, node].unsqueeze(-1)
        written = (value[:, node].unsqueeze(-1) - state @ one).mul_(strength[:, node])
        state += written * one.transpose(-1, -2)
        states[:, node + 1] = state
        out[:, node] = (state @ query[:, node].unsqueeze(-1)).squeeze(-1)
    kept[kept_rows[:count].long(), :nodes] = states[:, 1:].to(kept.dtype)
    scaled: torch.Tensor = out * width**-0.5
    return scaled.to(v.dtype).view(v.shape)


def recurrent(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, one token after another, for one sequence: what the others must equal.

    q (already scaled), k [T, H, K]; v [T, HV, V]; g, beta [T, HV]; state [HV, V, K].
    Returns the output [T, HV, V] and the states after each token [T, HV, V, K].
    """
    group = v.shape[1] // q.shape[1]
    outputs: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    for t in range(q.shape[0]):
        key = k[t].repeat_interleave(group, 0)
        query = q[t].repeat_interleave(group, 0)
        state = state * g[t].exp()[:, None, None]
        written = beta[t][:, None] * (v[t] - torch.einsum("hvk,hk->hv", state, key))
        state = state + torch.einsum("hv,hk->hvk", written, key)
        outputs.append(torch.einsum("hvk,hk->hv", state, query))
        states.append(state)
    return torch.stack(outputs), torch.stack(states)
