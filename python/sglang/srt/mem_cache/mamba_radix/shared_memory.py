"""Evicts from memory that states and KV share (``--enable-unified-memory``), in a policy's order.

SGLang's unified pool grows KV and states toward each other, so that what one gives up the other can
take. SGLang lets KV leaves give, in LRU order, whichever is short; here it is whatever the policy
orders lowest, a state or a leaf. The tree core evicts it by SGLang's own steps.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.allocator.unified_mamba import UnifiedMambaTokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, EvictResult
from sglang.srt.mem_cache.mamba_radix.events import HostCache
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType


def is_shared(allocator: Any) -> bool:
    """Whether states and KV, and nothing else, take their bytes from one memory.

    Args:
        allocator: SGLang's of KV tokens.
    """
    return isinstance(allocator, UnifiedMambaTokenToKVPoolAllocator)


class SharedMemory:
    """Evicts from both pools until an allocation can be served."""

    def __init__(self, cache: HostCache) -> None:
        self._cache = cache

    def make_room(self, params: EvictParams) -> EvictResult:
        """Evict until the allocator can serve what ``params`` says is missing, or nothing is left.

        As in SGLang's own eviction for an allocation, the goal is what can be allocated, not what
        is freed: pages, slots and holes that compaction can close are the allocator's to count.
        """
        cache = self._cache
        missing = {ComponentType.FULL: params.num_tokens, ComponentType.MAMBA: params.mamba_num}
        targets = {
            component: cache._component_available_size(component) + count
            for component, count in missing.items()
            if count > 0
        }
        total = EvictResult()
        if not targets:
            return total
        short = Pool.STATE if ComponentType.MAMBA in targets else Pool.KV
        cache.view.tick()
        cache.start_shortage(short)
        try:
            victims = cache.tree_core.evict_either(short)
            while not self._can_serve(targets):
                taken = next(victims, None)
                if taken is None:
                    break
                total.num_tokens_evicted += taken.get(ComponentType.FULL, 0)
                total.mamba_num_evicted += taken.get(ComponentType.MAMBA, 0)
        finally:
            cache.end_shortage()
        donor = cache.token_to_kv_pool_allocator.mamba_full_cache_donor()
        if ComponentType.MAMBA in targets:
            donor.prepare_mamba_allocation(targets[ComponentType.MAMBA])
        return total

    def _can_serve(self, targets: dict[ComponentType, int]) -> bool:
        cache = self._cache
        # KV that was freed inside a group of frees does not count before.
        cache.token_to_kv_pool_allocator.mamba_full_cache_donor().flush_deferred_full_frees()
        states = targets.get(ComponentType.MAMBA, 0)
        # KV can give bytes for a state, but not the number of its slot.
        if cache.req_to_token_pool.mamba_allocator.available_size() < states:
            return False
        return all(
            cache._component_available_size(component) >= target
            for component, target in targets.items()
        )
