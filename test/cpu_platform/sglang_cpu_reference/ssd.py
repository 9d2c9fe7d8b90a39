"""Mamba2's state space: a chunked scan for prefill and a batched step for decode.

Source: Dao, Gu, "Transformers are SSMs", arXiv 2405.21060, section 6 (block decomposition of the
semiseparable matrix); the notation here is theirs.

Per head, with a state h of shape [P, N], a step dt_t and a negative scalar A::

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T
    y_t = h_t C_t + D x_t

All arithmetic is fp32; outputs come in the dtype of the output buffer, states in that of the
pool. Sizes: T tokens, S sequences, NC chunks of C tokens, H heads, G groups (head h reads group
h // (H // G)), P the width of a head, N the width of the state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sglang_cpu_reference.chunks import ChunkPlan, plan_chunks

Tensor = torch.Tensor
NO_LIMIT = (0.0, float("inf"))


def step_sizes(
    dt: Tensor, dt_bias: Tensor | None, softplus: bool, limit: tuple[float, float]
) -> Tensor:
    """dt [..., H] plus its bias [H], made positive, clamped; fp32."""
    steps = dt.float()
    if dt_bias is not None:
        steps = steps + dt_bias.float()
    if softplus:
        steps = F.softplus(steps)
    return steps if limit == NO_LIMIT else steps.clamp(*limit)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    chunk_offsets: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    out: Tensor | None = None,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    return_intermediate_states: bool = False,
    state_dtype: torch.dtype | None = None,
    return_track_states: bool = False,
    track_seq_idx: Tensor | None = None,
    track_end_locs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scan packed sequences as SGLang's Mamba2 mixer asks for it.

    x [1, T, H, P]; dt [1, T, H]; A [H]; B, C [1, T, G, N]; D [H] or [H, P]; dt_bias [H];
    initial_states [S, H, P, N]; cu_seqlens [S + 1]; out [1, T, H, P] is filled.
    Returns, in ``state_dtype``: the states before every chunk of the flat grid over all T tokens
    [1, ceil(T / C), H, P, N], the last states [S, H, P, N], and the states at
    ``track_end_locs`` of the sequences ``track_seq_idx`` [1, n, H, P, N] (None without them).

    The chunks of this scan begin with their sequence, not on the flat grid. An entry of the flat
    grid is therefore known only where it is a chunk of its sequence too. The mixer reads no
    other (it asks for those by ``track_end_locs``); they are NaN so that a wrong read shows.
    """
    if z is not None or return_final_states or return_intermediate_states:
        raise NotImplementedError("gating and extra return values of the Mamba2 scan")
    if cu_seqlens is None or out is None or not (return_varlen_states and return_track_states):
        raise NotImplementedError("the Mamba2 scan serves packed sequences with an output buffer")
    steps = step_sizes(dt.squeeze(0), dt_bias, dt_softplus, dt_limit)
    plan = plan_chunks(cu_seqlens, chunk_size)
    heads, width, state_size = x.shape[2], x.shape[3], B.shape[3]
    if initial_states is None:
        initial = torch.zeros((len(plan.lengths), heads, width, state_size), dtype=torch.float32)
    else:
        initial = initial_states.float()
    last, before = chunked(
        x.squeeze(0), steps, A, B.squeeze(0), C.squeeze(0), D, initial, plan, out.squeeze(0)
    )
    dtype = state_dtype or x.dtype
    grid = _states_on_flat_grid(before, plan).to(dtype)
    tracked = None
    if track_seq_idx is not None and track_end_locs is not None:
        chunks = _chunks_at(plan, track_seq_idx.tolist(), track_end_locs.tolist())
        tracked = before[chunks].to(dtype).unsqueeze(0)
    return grid.unsqueeze(0), last.to(dtype), tracked


def _states_on_flat_grid(before: Tensor, plan: ChunkPlan) -> Tensor:
    """[NC, H, P, N] per-sequence chunk states to [ceil(T / C), H, P, N], NaN where unknown."""
    size = plan.size
    grid = before.new_full((-(-plan.offsets[-1] // size), *before.shape[1:]), float("nan"))
    for row, count in enumerate(plan.counts):
        if plan.offsets[row] % size == 0:
            target, source = plan.offsets[row] // size, plan.first[row]
            grid[target : target + count] = before[source : source + count]
    return grid


def _chunks_at(plan: ChunkPlan, rows: list[int], positions: list[int]) -> list[int]:
    """The chunk that begins at each flat position of the sequence named beside it."""
    chunks = []
    for row, position in zip(rows, positions, strict=True):
        index, rest = divmod(position - plan.offsets[row], plan.size)
        if rest or not 0 <= index < plan.counts[row]:
            raise ValueError(f"position {position} of sequence {row} begins no chunk")
        chunks.append(plan.first[row] + index)
    return chunks


def chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    plan: ChunkPlan,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fill ``out`` [T, H, P]; return the last states [S, H, P, N] and those before each chunk.

    x [T, H, P]; dt [T, H] after softplus; B, C [T, G, N]; state [S, H, P, N].
    """
    group = x.shape[1] // B.shape[1]
    xc = _by_head(plan.split(x), group)
    dtc = _by_head(plan.split(dt), group)
    bc = plan.split(B).transpose(1, 2).unsqueeze(2)
    cc = plan.split(C).transpose(1, 2).unsqueeze(2)
    # Padding has dt = 0: it neither fades nor writes a state.
    decay = (dtc * A.float().view(-1, group, 1)).cumsum(-1)
    inputs = xc * dtc.unsqueeze(-1)

    within = (decay.unsqueeze(-1) - decay.unsqueeze(-2)).clamp_(max=0.0).exp_().tril_()
    outputs = within.mul_(cc @ bc.transpose(-1, -2)) @ inputs
    left = (decay[..., -1:] - decay).exp_().unsqueeze(-1)
    written = (inputs.transpose(-1, -2) @ (left * bc)).flatten(1, 2)
    fade = decay[..., -1].exp().flatten(1, 2)[..., None, None]

    before = torch.empty_like(written)
    order = torch.tensor(plan.longest_first, dtype=torch.long)
    last = state.clone()
    running = state[order]
    for count, where in plan.steps():
        before[where] = running[:count]
        running[:count] = running[:count] * fade[where] + written[where]
    last[order] = running

    carried = before.view(plan.total, -1, group, *before.shape[2:]).transpose(-1, -2)
    outputs += (decay.exp().unsqueeze(-1) * cc) @ carried
    if D is not None:
        outputs += xc * D.float().view(-1, group, 1, D.shape[1] if D.dim() > 1 else 1)
    plan.join_into(outputs.flatten(1, 2).transpose(1, 2), out)
    return last, before


def _by_head(chunks: Tensor, group: int) -> Tensor:
    """[NC, C, H, ...] to [NC, G, H // G, C, ...]."""
    swapped = chunks.transpose(1, 2)
    shape = (swapped.shape[0], swapped.shape[1] // group, group, *swapped.shape[2:])
    return swapped.reshape(shape)


def selective_state_update(
    self: object,
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state_batch_indices: Tensor | None,
    pad_slot_id: int,
    out: Tensor | None,
    disable_state_update: bool,
    intermediate_states_buffer: Tensor | None,
    cache_steps: int | None,
    retrieve_parent_token: Tensor | None,
    intermediate_state_indices: Tensor | None,
) -> None:
    """One token for each of b sequences; their slots of the pool advance in place.

    A method of SGLang's Triton backend of the same purpose, hence ``self``. The mixer expands
    dt [b, H, P], A [H, P, N], D and dt_bias [H, P] from one number per head; only that number
    is read. state: the pool [slots, H, P, N]; x, out [b, H, P]; B, C [b, G, N].
    """
    if disable_state_update or z is not None or state_batch_indices is None or out is None:
        raise NotImplementedError("speculative decoding and gating in the Mamba2 decode step")
    heads = x.shape[1]
    group = heads // B.shape[1]
    bias = None if dt_bias is None else dt_bias[:, 0]
    steps = step_sizes(dt[:, :, 0], bias, dt_softplus, NO_LIMIT)
    fade = (steps * A[:, 0, 0].float()).exp_().view(-1, heads, 1, 1)
    inputs = x.float()
    key, query = B.float(), C.float()
    if group > 1:
        key = key.repeat_interleave(group, dim=1)
        query = query.repeat_interleave(group, dim=1)

    slots = state_batch_indices.long()
    current = state.index_select(0, slots).float().mul_(fade)
    current += (inputs * steps.unsqueeze(-1)).unsqueeze(-1) * key.unsqueeze(-2)
    state.index_copy_(0, slots, current.to(state.dtype))
    result = (current @ query.unsqueeze(-1)).squeeze(-1)
    if D is not None:
        result += inputs * D[:, :1].float()
    out.copy_(result)


def recurrent(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition, one token after another, for one sequence: what the others must equal.

    x [T, H, P]; dt [T, H] after softplus; A, D [H]; B, C [T, G, N]; state [H, P, N].
    Returns the output [T, H, P] and the states after each token [T, H, P, N].
    """
    group = x.shape[1] // B.shape[1]
    outputs, states = [], []
    for t in range(x.shape[0]):
        key, query = B[t].repeat_interleave(group, 0), C[t].repeat_interleave(group, 0)
        fade = (dt[t] * A).exp()[:, None, None]
        state = fade * state + torch.einsum("h,hp,hn->hpn", dt[t], x[t], key)
        outputs.append(torch.einsum("hpn,hn->hp", state, query) + D[:, None] * x[t])
        states.append(state)
    return torch.stack(outputs), torch.stack(states)
