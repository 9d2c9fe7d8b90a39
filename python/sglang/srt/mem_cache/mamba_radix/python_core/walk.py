"""Eviction walks over SGLang 0.5.23's Python tree core, in a policy's order."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.mamba_radix.events import HostCache
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode


class PolicyWalk:
    """One eviction walk: asks for victims, and never offers the same one twice in the same role.

    A victim can survive being offered (a HiCache backup that fails), and stock's own walk passes
    it over for the rest of the walk too. The policy asks the walk which ids to pass over, and of
    no others than those that it looks at.

    Args:
        pool: whose shortage the walk is to end.
        in_session: whether a session references a node, which then comes last; ``None`` where
            sessions are not tracked.
        shared: both pools are one memory, so that a state or a leaf of KV may go.
    """

    def __init__(
        self,
        cache: HostCache,
        pool: Pool,
        in_session: Callable[[Any], bool] | None,
        *,
        shared: bool = False,
    ) -> None:
        self._cache = cache
        self._pool = pool
        self._chosen_from = None if shared else pool
        self._in_session = in_session
        self._spare_sessions = in_session is not None
        self._offered: dict[int, bool] = {}

    def next(self) -> UnifiedTreeNode | None:
        """The policy's next victim, or LRU's if scoring fails; sessions' nodes come last."""
        node = self._next()
        if node is None and self._spare_sessions:
            self._spare_sessions = False
            node = self._next()
        if node is not None:
            self._offered[node.id] = self._is_leaf(node)
        return node

    def __contains__(self, id: object) -> bool:
        """Whether to pass over a node: it was offered in the role it has now, or is spared."""
        node = self._cache.tree_core.node_by_id(id)
        if id in self._offered and self._offered[id] == self._is_leaf(node):
            return True
        return self._spare_sessions and self._in_session is not None and self._in_session(node)

    def _is_leaf(self, node: UnifiedTreeNode) -> bool:
        return node in self._cache.tree_core.evictable_device_leaves

    def _next(self) -> UnifiedTreeNode | None:
        excluding: Container[int] = self if self._offered or self._spare_sessions else ()
        try:
            victim: UnifiedTreeNode | None = self._cache.choose_victim(self._chosen_from, excluding)
            return victim
        except Exception as error:
            self._cache.count_fallback(self._pool, error)
            if self._chosen_from is Pool.STATE:
                return self._least_recent_state()
            leaf = self._least_recent_leaf()
            if leaf is None and self._chosen_from is None:
                # SGLang too lets KV give before states, whichever of the two is short.
                return self._least_recent_state()
            return leaf

    def _least_recent_state(self) -> UnifiedTreeNode | None:
        lru = self._cache.tree_core.lru_lists[ComponentType.MAMBA]
        node = lru.get_lru_no_lock()
        while node is not None and node.id in self:
            node = lru.get_prev_no_lock(node)
        return node if node is None or lru.in_list(node) else None

    def _least_recent_leaf(self) -> UnifiedTreeNode | None:
        core = self._cache.tree_core
        leaves = [node for node in core.evictable_device_leaves if node.id not in self]
        priority = core.eviction_strategy.get_priority
        return min(leaves, key=lambda n: (priority(n), n.last_access_time, n.id), default=None)


class SingleVictim:
    """A walk over one victim that was chosen before it began."""

    def __init__(self, node: UnifiedTreeNode) -> None:
        self._node: UnifiedTreeNode | None = node

    def next(self) -> UnifiedTreeNode | None:
        node, self._node = self._node, None
        return node


def session_test(component: Any) -> Callable[[Any], bool] | None:
    """Whether a session references a node's data, ``None`` where sessions are not tracked."""
    if not component.tree_core.enable_session_radix_cache:
        return None
    return lambda node: bool(component.session_ref(node) > 0)


def evict_either(cache: HostCache, short: Pool) -> Iterator[dict[ComponentType, int]]:
    """Evict from both pools in a policy's order, one victim a step: a leaf whole, or a state.

    Args:
        short: the pool whose shortage this is to end.

    Yields:
        Tokens and states that went, by component.
    """
    core = cache.tree_core
    walk = PolicyWalk(cache, short, _session_test_of_both(cache), shared=True)
    while (victim := walk.next()) is not None:
        is_leaf = victim in core.evictable_device_leaves
        one = EvictParams(num_tokens=1) if is_leaf else EvictParams(num_tokens=0, mamba_num=1)
        core.single_victim = SingleVictim(victim)
        try:
            result = cache._evict(one)
        finally:
            core.single_victim = None
        yield {
            ComponentType.FULL: result.num_tokens_evicted,
            ComponentType.MAMBA: result.mamba_num_evicted,
        }


def _session_test_of_both(cache: HostCache) -> Callable[[Any], bool] | None:
    """Whether a session references what evicting a node would take."""
    core = cache.tree_core
    if not core.enable_session_radix_cache:
        return None
    states = cache.components[ComponentType.MAMBA]
    whole = [cache.components[ComponentType.FULL], states]

    def in_session(node: UnifiedTreeNode) -> bool:
        taken = whole if node in core.evictable_device_leaves else [states]
        return any(component.session_ref(node) > 0 for component in taken)

    return in_session
