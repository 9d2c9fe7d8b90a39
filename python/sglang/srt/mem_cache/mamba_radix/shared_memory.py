"""Evicts from memory that states and KV share (``--enable-unified-memory``), in a policy's order.

SGLang's unified pool grows KV and states toward each other, so that what one gives up the other can
take. SGLang lets KV leaves give, in LRU order, whichever is short; here it is whatever the policy
orders lowest, a state or a leaf. Every victim goes through SGLang's own eviction steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.allocator.unified_mamba import UnifiedMambaTokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, EvictResult
from sglang.srt.mem_cache.mamba_radix.events import HostCache
from sglang.srt.mem_cache.mamba_radix.python_core.walk import PolicyWalk, SingleVictim
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

_SHARING = (ComponentType.FULL, ComponentType.MAMBA)


def is_shared(allocator: Any) -> bool:
    """Whether states and KV, and nothing else, take their bytes from one memory.

    Args:
        allocator: SGLang's of KV tokens.
    """
    return isinstance(allocator, UnifiedMambaTokenToKVPoolAllocator)


class SharedMemory:
    """Chooses and evicts across both pools until an allocation can be served.

    Attributes:
        walk: over the victim that is being evicted, ``None`` while there is none.
    """

    def __init__(self, cache: HostCache) -> None:
        self._cache = cache
        self.walk: SingleVictim | None = None

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
            walk = PolicyWalk(cache, short, self._session_test(), shared=True)
            while not self._can_serve(targets):
                victim = walk.next()
                if victim is None:
                    break
                _add(total, self._evict(victim))
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

    def _evict(self, victim: UnifiedTreeNode) -> EvictResult:
        """Evict a leaf with all that it holds, or the state of any other node."""
        is_leaf = victim in self._cache.tree_core.evictable_device_leaves
        one = EvictParams(num_tokens=1) if is_leaf else EvictParams(num_tokens=0, mamba_num=1)
        self.walk = SingleVictim(victim)
        try:
            result: EvictResult = self._cache._evict(one)
        finally:
            self.walk = None
        return result

    def _session_test(self) -> Callable[[Any], bool] | None:
        """Whether a session references what evicting a node would take."""
        core = self._cache.tree_core
        if not core.enable_session_radix_cache:
            return None
        components = [self._cache.components[component] for component in _SHARING]
        states = self._cache.components[ComponentType.MAMBA]

        def in_session(node: UnifiedTreeNode) -> bool:
            taken = components if node in core.evictable_device_leaves else [states]
            return any(component.session_ref(node) > 0 for component in taken)

        return in_session


def _add(total: EvictResult, result: EvictResult) -> None:
    total.num_tokens_evicted += result.num_tokens_evicted
    total.mamba_num_evicted += result.mamba_num_evicted
