"""Serves requests from a 0.5.4 cache over CPU pools, as that release's scheduler would, one by one.

A request holds one working state. Its prompt is prefilled in chunks; at the end of each, a copy of
the state enters the tree, and when the request ends, the working state itself does. There is no
state at a branch point in this release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from cpu_cache_v0_5_4 import CpuCache


@dataclass
class Served:
    """What one request found, in pool slots (tokens, or blocks of a trace that is cut in blocks).

    Attributes:
        hit: slots that needed no prefill.
        served: ``False`` where it did not fit into the memory that could be freed.
    """

    hit: int
    served: bool


def serve(
    cache: CpuCache, prompt: Sequence[int], output: Sequence[int], chunk: int = 8192
) -> Served:
    """Serve one request; every slot that it took is given back or owned by the tree afterwards.

    Args:
        prompt: ids of the prompt's slots.
        output: ids of the slots whose KV decoding fills; the last token of a reply has none.
        chunk: slots that one prefill step computes, as ``--chunked-prefill-size``.
    """
    tokens = [*prompt, *output]
    # The last token of a prompt is always computed, so that there is something to sample from.
    lookup = SimpleNamespace(origin_input_ids=prompt)
    found = cache.match(tokens[: len(prompt) - 1], req=lookup)
    hit, held = found.device_prefix_len, found.device_indices
    lock = cache.lock(found.last_device_node)
    fresh = torch.empty(0, dtype=torch.int64)
    working = cache.alloc_state()
    ends = [*range(hit + chunk, len(prompt), chunk), len(prompt), len(tokens)]
    for step, end in enumerate(ends):
        if working is None:
            break
        slots = cache.alloc_kv(end - len(held) - len(fresh))
        if slots is None:
            break
        fresh = torch.cat([fresh, slots])
        last = step == len(ends) - 1
        state = working if last else cache.alloc_state()
        if state is None:
            break
        if not last:
            cache.requests.mamba_pool.copy_from(working, state)
        node = cache.commit(tokens[:end], held, fresh, state)
        if last:
            working = None
        cache.unlock(lock)
        lock = cache.lock(node)
        held = cache.cache.match_prefix(cache.key(tokens[:end])).device_indices
        fresh = fresh[:0]
        if step == 0 and hasattr(cache.cache, "count_request"):
            cache.cache.count_request(lookup)
    else:
        cache.unlock(lock)
        return Served(hit, True)
    cache.unlock(lock)
    cache.allocator.free(fresh)
    if working is not None:
        cache.free_state(working)
    return Served(hit, False)
