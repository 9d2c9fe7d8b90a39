"""Attention over the paged KV cache without the redundant work of upstream's torch backend.

Upstream pads the queries of a prefill to the whole context, so a cache hit saves it nothing, and
loops over the requests of a decode batch. Here a prefill computes its own rows only, and a
decode batch of similar lengths is one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

Tensor = torch.Tensor

# Rows of a prefill behind a cached prefix that share one mask: bounds the mask's memory and the
# keys that are computed only to be masked.
ROWS_PER_MASK = 512
# A decode batch is padded to its longest request while that wastes less than this factor.
PADDING_LIMIT = 2.0


def extend(
    self: object,
    query: Tensor,
    output: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    extend_prefix_lens: Tensor,
    extend_seq_lens: Tensor,
    encoder_lens: Tensor | None = None,
    scaling: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    is_cross_attn: bool = False,
    sliding_window_size: int | None = None,
) -> Tensor:
    """Fill output [T, HQ, DV] for the new tokens of N requests.

    query [T, HQ, D]; k_cache [slots, HK, D]; v_cache [slots, HK, DV]; req_to_token
    [requests, longest]; req_pool_indices, seq_lens, extend_prefix_lens, extend_seq_lens [N].
    """
    _require_decoder(encoder_lens, is_cross_attn, causal)
    begin = 0
    rows = zip(
        req_pool_indices.tolist(),
        extend_prefix_lens.tolist(),
        extend_seq_lens.tolist(),
        strict=True,
    )
    for request, prefix, new in rows:
        if new == 0:
            continue
        slots = _physical(self, req_to_token[request, : prefix + new].long())
        keys = _heads_first(k_cache, slots, query.dtype)
        values = _heads_first(v_cache, slots, query.dtype)
        queries = query[begin : begin + new].transpose(0, 1).unsqueeze(0)
        options: dict[str, Any] = {"scale": scaling, "enable_gqa": enable_gqa}
        if prefix == 0 and not _slides(sliding_window_size):
            found = scaled_dot_product_attention(queries, keys, values, is_causal=True, **options)
            output[begin : begin + new] = found[0].transpose(0, 1)
        else:
            for first in range(0, new, ROWS_PER_MASK):
                last = min(first + ROWS_PER_MASK, new)
                end = prefix + last
                found = scaled_dot_product_attention(
                    queries[:, :, first:last],
                    keys[:, :, :end],
                    values[:, :, :end],
                    attn_mask=_visible(prefix + first, end, end, sliding_window_size),
                    **options,
                )
                output[begin + first : begin + last] = found[0].transpose(0, 1)
        begin += new
    return output


def decode(
    self: object,
    query: Tensor,
    output: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    encoder_lens: Tensor | None = None,
    scaling: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    is_cross_attn: bool = False,
    sliding_window_size: int | None = None,
) -> Tensor:
    """Fill output [B, HQ, DV] for one new token of each of B requests; shapes as in extend."""
    _require_decoder(encoder_lens, is_cross_attn, True)
    lengths = seq_lens.tolist()
    longest = max(lengths)
    sliding = sliding_window_size if _slides(sliding_window_size) else None
    # Query heads of one group become rows of one key head: no key is copied, and the fused
    # kernel of torch applies, which it does not for grouped queries of a single row.
    queries = query.reshape(len(lengths), k_cache.shape[1], -1, query.shape[-1])
    if sliding is None and longest * len(lengths) <= PADDING_LIMIT * sum(lengths):
        slots = req_to_token[req_pool_indices, :longest].long()
        mask = None
        if min(lengths) < longest:
            valid = torch.arange(longest) < seq_lens.unsqueeze(-1)
            # Slot 0 is SGLang's padding slot and always finite; a stale one might not be.
            slots = slots * valid
            mask = valid[:, None, None, :]
        slots = _physical(self, slots)
        keys = _gather(k_cache, slots, query.dtype).transpose(1, 2)
        values = _gather(v_cache, slots, query.dtype).transpose(1, 2)
        found = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)
        output.copy_(found.flatten(1, 2))
        return output
    for row, (request, length) in enumerate(zip(req_pool_indices.tolist(), lengths, strict=True)):
        first = 0 if sliding is None else max(0, length - 1 - sliding)
        slots = _physical(self, req_to_token[request, first:length].long())
        found = scaled_dot_product_attention(
            queries[row : row + 1],
            _heads_first(k_cache, slots, query.dtype),
            _heads_first(v_cache, slots, query.dtype),
            scale=scaling,
        )
        output[row] = found[0].flatten(0, 1)
    return output


def translates_ids(original: Callable[..., None]) -> Callable[..., None]:
    """A backend that can translate slot ids; upstream's torch backend has no need to."""

    def __init__(self: Any, model_runner: Any) -> None:
        original(self, model_runner)
        self.kv_index_translator = model_runner.kv_index_translator

    return __init__


def verify(
    self: object,
    query: Tensor,
    output: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    visible: Tensor,
    scaling: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Fill output [B * n, HQ, DV] for the n nodes of B trees of drafts behind their requests.

    seq_lens [B] are those before the drafts; visible [B, n, n]: which nodes each node sees.
    Other shapes as in extend.
    """
    nodes = visible.shape[-1]
    rows = zip(req_pool_indices.tolist(), seq_lens.tolist(), strict=True)
    for row, (request, length) in enumerate(rows):
        slots = _physical(self, req_to_token[request, : length + nodes].long())
        mask = torch.cat([torch.ones(nodes, length, dtype=torch.bool), visible[row]], dim=-1)
        own = slice(row * nodes, (row + 1) * nodes)
        found = scaled_dot_product_attention(
            query[own].transpose(0, 1).unsqueeze(0),
            _heads_first(k_cache, slots, query.dtype),
            _heads_first(v_cache, slots, query.dtype),
            attn_mask=mask,
            scale=scaling,
            enable_gqa=enable_gqa,
        )
        output[own] = found[0].transpose(0, 1)
    return output


def decodes(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A layer's forward that says of what it writes that the ids are the cache's rows.

    They are on every pool: SGLang translated them when it built the batch. But upstream's torch
    backend does not say so, and a pool of unified memory then refuses them.
    """

    def forward(
        self: Any,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
    ) -> Tensor:
        if save_kv_cache:
            _write(self, k, v, layer, forward_batch)
        return original(self, q, k, v, layer, forward_batch, save_kv_cache=False)

    return forward


def extends(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same for a layer's prefill, which here serves the verification of drafts too.

    Upstream's torch backend asks the batch for what one under verification does not have.
    """

    def forward(
        self: Any,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
    ) -> Tensor:
        if save_kv_cache:
            _write(self, k, v, layer, forward_batch)
        if not forward_batch.forward_mode.is_target_verify():
            return original(self, q, k, v, layer, forward_batch, save_kv_cache=False)
        if _slides(layer.sliding_window_size):
            raise NotImplementedError("drafts under a sliding window have no CPU reference")
        output = q.new_empty((q.shape[0], layer.tp_q_head_num, layer.v_head_dim))
        verify(
            self,
            q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
            output,
            self.token_to_kv_pool.get_key_buffer(layer.layer_id),
            self.token_to_kv_pool.get_value_buffer(layer.layer_id),
            self.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            _visible_nodes(forward_batch.spec_info, len(forward_batch.seq_lens)),
            scaling=layer.scaling,
            enable_gqa=layer.tp_q_head_num != layer.tp_k_head_num,
        )
        return output.flatten(1)

    return forward


def _write(self: Any, k: Tensor | None, v: Tensor | None, layer: Any, forward_batch: Any) -> None:
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    if k is not None and v is not None:
        where = KVWriteLoc.for_layer(forward_batch, layer, swa_loc=self.swa_out_cache_loc)
        self.token_to_kv_pool.set_kv_buffer(layer, where, k, v)


def _visible_nodes(drafts: Any, count: int) -> Tensor:
    """[B, n, n]: which nodes of their trees the drafts of a batch see."""
    nodes = drafts.draft_token_num
    mask = drafts.custom_mask
    if drafts.tree_topk == 1 or mask is None or mask.numel() < count * nodes * nodes:
        return torch.ones(nodes, nodes, dtype=torch.bool).tril().expand(count, nodes, nodes)
    visible: Tensor = mask[: count * nodes * nodes].view(count, nodes, nodes).bool()
    return visible


def _physical(backend: object, slots: Tensor) -> Tensor:
    """Rows of the cache at ``slots``, whose ids are virtual under unified memory."""
    translator: Any = getattr(backend, "kv_index_translator", None)
    if translator is None:
        return slots
    physical: Tensor = translator.translate_dcp_read_ids(slots)
    return physical


def _gather(cache: Tensor, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """[slots, H, D] at ``slots`` [...] to [..., H, D].

    `index_select` copies whole rows, an index expression one number at a time.
    """
    rows = cache.index_select(0, slots.flatten())
    return rows.view(*slots.shape, *cache.shape[1:]).to(dtype)


def _heads_first(cache: Tensor, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """[slots, H, D] at ``slots`` [L] to [1, H, L, D]."""
    return _gather(cache, slots, dtype).transpose(0, 1).unsqueeze(0)


def _visible(first: int, last: int, keys: int, window: int | None) -> Tensor:
    """Boolean [last - first, keys]: which keys the queries at these positions may see."""
    at = torch.arange(first, last).unsqueeze(1)
    key = torch.arange(keys).unsqueeze(0)
    seen = key <= at
    if window is not None and _slides(window):
        seen &= key >= at - window
    return seen


def _slides(window: int | None) -> bool:
    return window is not None and window > -1


def _require_decoder(encoder_lens: Tensor | None, is_cross_attn: bool, causal: bool) -> None:
    if encoder_lens is not None or is_cross_attn or not causal:
        raise NotImplementedError("only causal self-attention has a CPU reference")


def length_of_padding(self: object) -> int:
    """Tokens of a sequence that only fills up the batch of a data-parallel rank."""
    return 1
