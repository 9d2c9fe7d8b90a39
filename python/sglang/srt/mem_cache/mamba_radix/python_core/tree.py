"""SGLang 0.5.23's Python tree core and components, reporting events and taking a policy's victims.

Nothing here replaces how the tree is kept: each override calls the stock method and adds what the
policy must know, or points the stock eviction step at the policy's victim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.mamba_radix.admission import GivingMambaComponent
from sglang.srt.mem_cache.mamba_radix.events import HostCache, TreeEvents, Walk
from sglang.srt.mem_cache.mamba_radix.lru_leaves import LeafOrder, keeps_lru_order
from sglang.srt.mem_cache.mamba_radix.python_core.key import plain_key
from sglang.srt.mem_cache.mamba_radix.python_core.walk import SingleVictim, evict_either
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.marconi.tree import Namespace, namespace_of
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.components.base import EvictLayer
from sglang.srt.mem_cache.unified_cache.components.full import FullComponent
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeCore
from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import BaseEvictionResult

if TYPE_CHECKING:
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode


class MambaRadixTreeCore(UnifiedTreeCore):
    """The Python tree core, telling the cache's view what happens to its nodes.

    Attributes:
        single_victim: what an eviction is to take, chosen before it began; ``None`` otherwise.
    """

    def __init__(self, params: CacheInitParams, components: dict[ComponentType, Any]) -> None:
        self.cache: HostCache = components[ComponentType.MAMBA].cache
        self.single_victim: SingleVictim | None = None
        self._leaf_order: LeafOrder | None = None
        self.cache.attach_tree(self)
        super().__init__(params, components)

    def reset(self) -> None:
        self._leaf_order = None
        super().reset()
        self.cache.forget_tree()

    def match_prefix(self, params: Any) -> Any:
        self._prepare(params)
        return super().match_prefix(params)

    def begin_insert(self, params: Any) -> Any:
        if not self.cache.serves_probe:
            self.cache.view.tick()
        self._prepare(params)
        return super().begin_insert(params)

    def _prepare(self, params: Any) -> None:
        view = self.cache.view
        if view.is_behind:
            self.cache.attempt(view.report_some)
        if not self.is_eagle:
            params.key = plain_key(params.key)

    def _is_device_leaf(self, node: UnifiedTreeNode) -> bool:
        """As stock's, which asks by generators; every operation asks it of several nodes."""
        full = ComponentType.FULL
        if node is self.root_node or node.component_data[full].value is None:
            return False
        for data in node.component_data:
            if data.lock_ref > 0:
                return False
        for child in node.children.values():  # noqa: SIM110
            if child.component_data[full].value is not None:
                return False
        return True

    # -- answers to the view and the lookups

    def holds_state(self, node: UnifiedTreeNode) -> bool:
        return node.component_data[ComponentType.MAMBA].value is not None

    def state_survives(self, node: UnifiedTreeNode) -> bool:
        """The state lies on the device or, with HiCache, on the host."""
        state = node.component_data[ComponentType.MAMBA]
        return state.value is not None or state.host_value is not None

    def state_is_locked(self, node: UnifiedTreeNode) -> bool:
        return bool(node.component_data[ComponentType.MAMBA].lock_ref > 0)

    def is_evictable_leaf(self, node: UnifiedTreeNode) -> bool:
        return node in self.evictable_device_leaves

    def state_on_host_alone(self, node: UnifiedTreeNode) -> bool:
        state = node.component_data[ComponentType.MAMBA]
        return state.value is None and state.host_value is not None

    def kv_on_host_alone(self, node: UnifiedTreeNode) -> bool:
        return bool(node.evicted and node.backuped)

    @staticmethod
    def tokens_of(key: Any) -> Sequence[int]:
        tokens: Sequence[int] = key.raw_token_ids()
        return tokens

    @staticmethod
    def namespace_of(key: Any) -> Namespace:
        return namespace_of(key)

    # -- what admission asks

    def find(self, node_id: int) -> UnifiedTreeNode | None:
        return self._node_arena.get(node_id)

    def children_beyond(self, node: UnifiedTreeNode) -> int:
        """How many prefixes go on from the state of ``node``; 0 where it cannot leave."""
        state = node.component_data[ComponentType.MAMBA]
        # A lock is another request's or a backup's; a leaf cannot do without its state.
        if state.value is None or state.lock_ref or state.session_ref:
            return 0
        return len(node.children)

    def take_back_state(self, node: UnifiedTreeNode) -> None:
        """Evict the state of ``node``, which has children, from the device; its KV stays."""
        component = self.components_by_type[ComponentType.MAMBA]
        result = BaseEvictionResult()
        try:
            for step in (self._evict_component_and_detach_lru, self._cascade_evict):
                step(
                    node,
                    component,
                    target=EvictLayer.DEVICE,
                    tracker=result.tracker,
                    device_frees=result.device_frees,
                    host_frees=result.host_frees,
                    cache_actions=result.cache_actions,
                )
        finally:
            self.cache._apply_eviction_result(result)

    # -- eviction

    def evict_either(self, short: Pool) -> Iterator[dict[ComponentType, int]]:
        """See :func:`evict_either`."""
        return evict_either(self.cache, short)

    def start_walk(self, pool: Pool, component: Any) -> Walk | None:
        """A walk over ``pool``; ``None`` where the policy leaves the order to SGLang."""
        return self.single_victim or self.cache.start_walk(pool, component)

    def end_walk(self, walk: Walk | None) -> None:
        # That over a victim that was chosen before is no operation of its own.
        if not isinstance(walk, SingleVictim):
            self.cache.end_walk()

    def evict_device_next_node(self, component_type: ComponentType, tracker: Any) -> Any:
        step = super().evict_device_next_node(component_type, tracker)
        id = step.mamba_backup_node_id
        if id is None or self.cache.is_worth_backup(self.node_by_id(id)):
            return step
        return self.finish_mamba_state_eviction(id)

    # -- stock's own order of KV leaves

    def lru_walk(self) -> LeafOrder | None:
        """Stock's walk over KV leaves without sorting them; ``None`` where they are not in LRU."""
        if not keeps_lru_order(self):
            return None
        if self._leaf_order is None:
            self._leaf_order = LeafOrder(self.evictable_device_leaves)
        return self._leaf_order.begin_walk()

    def forget_lru(self) -> None:
        """Another order is in force: keep up with this one no longer."""
        self._leaf_order = None

    # -- events

    def set_component_device_value(
        self, node_id: int, component_type: ComponentType, value: Any
    ) -> None:
        super().set_component_device_value(node_id, component_type, value)
        if component_type is ComponentType.MAMBA:
            # If it is new, and did not come back from the host, the insert says so.
            self.cache.report(self.cache.view.state_came_or_went, self.node_by_id(node_id))

    def commit_hicache_transfers(
        self, node_id: int, phase: Any, comp_xfers: Any, **options: Any
    ) -> None:
        inserted = options.get("insert_result")
        id = None if inserted is None else inserted.inserted_host_node
        survived = id is None or self.state_survives(self.node_by_id(id))
        super().commit_hicache_transfers(node_id, phase, comp_xfers, **options)
        if not survived and self.state_survives(self.node_by_id(id)):
            # Storage gave the host a state, at which requests can resume from now on.
            self.cache.report(self.cache.view.state_came_or_went, self.node_by_id(id))

    def evict_device_leaf(self, node_id: int, is_write_back: bool) -> Any:
        self.cache.report(self.cache.leaving_device, self.node_by_id(node_id))
        return super().evict_device_leaf(node_id, is_write_back)

    def drop_subtree_no_host(self, node_id: int) -> Any:
        self.cache.report(self.cache.leaving_device, self.node_by_id(node_id))
        return super().drop_subtree_no_host(node_id)

    def _update_evictable_leaf_sets(self, node: UnifiedTreeNode) -> None:
        order = self._leaf_order
        if order is None:
            super()._update_evictable_leaf_sets(node)
        else:
            was_leaf = node in self.evictable_device_leaves
            super()._update_evictable_leaf_sets(node)
            if not was_leaf and node in self.evictable_device_leaves:
                order.became_leaf(node)
        self.cache.report(self.cache.view.leaf_sets_updated, node)
        if node.parent in self.evictable_device_leaves and not node.evicted:
            # Its KV came back from the host: stock takes the parent out at the next lock.
            self.cache.report(self.cache.view.changed, node.parent)

    def _remove_leaf_from_parent(self, node: UnifiedTreeNode) -> None:
        self.cache.report(self.cache.prefix_deleted, node)
        super()._remove_leaf_from_parent(node)
        self.cache.report(self.cache.view.removed, node)
        self.cache.report(self.cache.view.leaf_sets_updated, node.parent)


class PolicyMambaComponent(GivingMambaComponent):
    """Recurrent states: their events, and the policy's victims in the state pool."""

    cache: TreeEvents

    def commit_insert_component_data(
        self, node: UnifiedTreeNode, *args: Any, **kwargs: Any
    ) -> None:
        super().commit_insert_component_data(node, *args, **kwargs)
        self.cache.report(self.cache.state_created, node)

    def redistribute_on_node_split(
        self, new_parent: UnifiedTreeNode, child: UnifiedTreeNode
    ) -> None:
        super().redistribute_on_node_split(new_parent, child)
        self.cache.report(self.cache.split, new_parent, child)

    def evict_component(
        self, node: UnifiedTreeNode, *args: Any, target: EvictLayer = EvictLayer.DEVICE, **kw: Any
    ) -> tuple[int, int]:
        if EvictLayer.DEVICE in target:
            self.cache.report(self.cache.evicting_state, node)
        freed: tuple[int, int] = super().evict_component(node, *args, target=target, **kw)
        self.cache.report(self.cache.view.state_came_or_went, node)
        return freed

    def acquire_component_lock(
        self, node: UnifiedTreeNode, result: Any, lock_host: bool = False
    ) -> Any:
        result = super().acquire_component_lock(node, result, lock_host)
        if not lock_host:
            self.cache.report(self.cache.view.changed, node)
        return result

    def release_component_lock(
        self, node: UnifiedTreeNode, params: Any, lock_host: bool = False
    ) -> None:
        super().release_component_lock(node, params, lock_host)
        if not lock_host:
            self.cache.report(self.cache.view.changed, node)

    def _evict_device_start(self, request_cnt: int) -> None:
        super()._evict_device_start(request_cnt)
        self._walk: Walk | None = self.tree_core.start_walk(Pool.STATE, self)

    def _evict_device_next_node(self, tracker: Any, *args: Any, **kwargs: Any) -> Any:
        if self._walk is not None and tracker[self.component_type] < self._evict_device_request_cnt:
            # Stock evicts the node at its cursor, whichever way that node needs.
            self._evict_device_cursor = self._walk.next()
            if self._evict_device_cursor is None:
                return None
        return super()._evict_device_next_node(tracker, *args, **kwargs)

    def _evict_device_end(self) -> None:
        super()._evict_device_end()
        self.tree_core.end_walk(self._walk)
        self._walk = None


class PolicyFullComponent(FullComponent):
    """KV of attention layers: the policy's victims among the evictable leaves."""

    cache: TreeEvents

    def acquire_component_lock(
        self, node: UnifiedTreeNode, result: Any, lock_host: bool = False
    ) -> Any:
        result = super().acquire_component_lock(node, result, lock_host)
        if lock_host:
            return result
        # Below host-only nodes the lowest node with KV on the device was the evictable leaf.
        while node.parent is not None and node.evicted:
            node = node.parent
        self.cache.report(self.cache.view.changed, node)
        return result

    def evict_component(
        self, node: UnifiedTreeNode, *args: Any, target: EvictLayer = EvictLayer.DEVICE, **kw: Any
    ) -> tuple[int, int]:
        if EvictLayer.DEVICE in target and not node.evicted:
            self.cache.report(self.cache.evicting_kv, node)
        freed: tuple[int, int] = super().evict_component(node, *args, target=target, **kw)
        return freed

    def _evict_device_start(self, request_cnt: int) -> None:
        self._walk: Walk | None = self.tree_core.start_walk(Pool.KV, self)
        if self._walk is None:
            self._walk = self.tree_core.lru_walk()
        else:
            self.tree_core.forget_lru()
        if self._walk is None:
            super()._evict_device_start(request_cnt)
        else:
            self._evict_device_request_cnt = request_cnt

    def _evict_device_next_node(self, tracker: Any, *args: Any, **kwargs: Any) -> int | None:
        if self._walk is None:
            return super()._evict_device_next_node(tracker, *args, **kwargs)  # type: ignore[no-any-return]
        if tracker[self.component_type] >= self._evict_device_request_cnt:
            return None
        node = self._walk.next()
        return None if node is None else node.id

    def _evict_device_end(self) -> None:
        super()._evict_device_end()
        self.tree_core.end_walk(self._walk)
        if isinstance(self._walk, LeafOrder):
            self._walk.end_walk()
        self._walk = None


COMPONENTS: dict[ComponentType, type[Any]] = {
    ComponentType.FULL: PolicyFullComponent,
    ComponentType.MAMBA: PolicyMambaComponent,
}
