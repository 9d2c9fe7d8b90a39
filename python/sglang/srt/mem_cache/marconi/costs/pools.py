"""Reads bytes per KV token and per cached state off the pools of a running server.

Pools are looked at by their attributes and never imported, so index-only pools of tests do as well
as SGLang's. A pool belongs to one tensor-parallel rank, so sharding needs no arithmetic here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class PoolBytes(NamedTuple):
    """Bytes on this rank: one token of KV over all attention layers, one recurrent state."""

    kv_bytes_per_token: int
    state_bytes: int


def pool_bytes(req_to_token_pool: Any, token_to_kv_pool: Any) -> PoolBytes:
    """Bytes of SGLang's ``HybridReqToTokenPool`` (or its ``MambaPool``) and its KV pool.

    Raises:
        TypeError: if a pool has none of the attributes that SGLang's pools have.
    """
    return PoolBytes(kv_bytes_per_token(token_to_kv_pool), state_bytes(req_to_token_pool))


def kv_bytes_per_token(pool: Any) -> int:
    """Bytes that one token takes in a KV pool, over all its layers.

    Accepts ``MHATokenToKVPool`` and ``MLATokenToKVPool`` with what derives from them (quantisation
    scales and indexer keys included), and the pools that wrap them: ``HybridLinearKVPool``,
    ``SWAKVPool``. A page's bytes that are not a multiple of its tokens are rounded down.

    Raises:
        TypeError: if the pool has neither a size in bytes nor a wrapped pool.
    """
    window = getattr(pool, "swa_kv_pool", None)
    full = getattr(pool, "full_kv_pool", None)
    if full is not None:
        return kv_bytes_per_token(full) + (0 if window is None else kv_bytes_per_token(window))
    entry = _unified_entry_bytes(pool)
    if entry is not None:
        return entry
    size, measure = getattr(pool, "size", None), getattr(pool, "get_kv_size_bytes", None)
    if size is None or measure is None:
        raise TypeError(f"{type(pool).__name__} is no KV pool: it has no size in tokens and bytes")
    total = measure()
    total_bytes = sum(total) if isinstance(total, (tuple, list)) else total
    # SGLang allocates one page more than it hands out, for the tokens of padded batches.
    return int(total_bytes) // (int(size) + int(getattr(pool, "page_size", 1)))


def state_bytes(pool: Any) -> int:
    """Bytes of one cached recurrent state in a ``MambaPool``, or in the pool that holds one.

    Temporal and convolution tensors of every layer, and the states that ride along with a slot
    (``_slot_siblings``). Buffers of speculative decoding are not part of a cached state. Under
    ``--enable-int8-mamba-checkpoint`` cached states lie compressed in a pool of their own
    (``MambaCheckpointPool``), and it is those that count.

    Raises:
        TypeError: if there is no ``mamba_cache`` to look at.
    """
    compressed = getattr(pool, "mamba_ckpt_pool", None)
    if compressed is not None:
        windows = sum(_bytes_per_slot(tensor) for tensor in compressed.conv)
        return int(compressed.temporal.bytes_per_slot()) + windows
    holder = getattr(pool, "mamba_pool", pool)
    entry = _unified_entry_bytes(holder)
    if entry is not None:
        return entry
    cache = getattr(holder, "mamba_cache", None)
    if cache is None:
        raise TypeError(f"{type(pool).__name__} holds no recurrent states")
    siblings = (getattr(s, "conv_state", None) for s in getattr(holder, "_slot_siblings", ()))
    return sum(_bytes_per_slot(tensor) for tensor in _tensors(cache.temporal, cache.conv, siblings))


def _unified_entry_bytes(pool: Any) -> int | None:
    """Bytes of a token or state, padding included, in a pool that lies in a ``UnifiedKVPool``.

    Such pools report a size of zero themselves: their memory belongs to the pool around them.
    """
    unified = getattr(pool, "_unified_buffer", None)
    return None if unified is None else int(unified.spec(pool._sub_pool_name).entry_bytes())


def _tensors(*values: Any) -> Iterable[Any]:
    for value in values:
        if value is None:
            continue
        if hasattr(value, "element_size"):
            yield value
        else:
            yield from _tensors(*value)


def _bytes_per_slot(tensor: Any) -> int:
    layers, slots = tensor.shape[0], tensor.shape[1]
    if layers == 0 or slots == 0:
        return 0
    return int(tensor.numel()) * int(tensor.element_size()) // int(slots)
