"""SGLang 0.5.23's Rust tree core with a host tier below it (HiCache), under a policy.

SGLang copies to the host, loads back and forgets there by itself, but for copies of states that the
policy leaves out and victims that it chooses there. Where SGLang says which nodes an operation
changed, these are asked anew; of what the host forgets it says the slots alone,
which the mirror knows the nodes of. Every question is a call into the core, about a microsecond.

KV leaves under LRU, whose order the core keeps, are left to its own walk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.mamba_radix.rust_core.host_mirror import HostedMirror
from sglang.srt.mem_cache.mamba_radix.rust_core.leaves import Learnt
from sglang.srt.mem_cache.mamba_radix.rust_core.mirror import Segment
from sglang.srt.mem_cache.mamba_radix.rust_core.tree import (
    FULL,
    MAMBA,
    NOTHING,
    POOLS,
    MambaRadixRustTreeCore,
    SGLangKeys,
)
from sglang.srt.mem_cache.rust_tree_core.adapter import RustUnifiedTreeCore
from sglang.srt.mem_cache.unified_cache.components.base import CacheTransferPhase
from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import (
    EvictDeviceNextNodeResult,
)

if TYPE_CHECKING:
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams

_MAMBA = int(MAMBA)


class HostedRustMirror(SGLangKeys, HostedMirror):
    """Where KV and states may lie on the host."""


class HostedRustTreeCore(MambaRadixRustTreeCore):
    """The Rust tree core, telling the cache's view of what moves between device and host too."""

    mirror: Any

    def __init__(self, params: CacheInitParams, cache: Any, *, states_per_path: int = -1) -> None:
        super().__init__(params, cache, states_per_path=states_per_path)
        self._offered: dict[int, bool] = {}
        self._backing_up: Any = None
        self._host_short_of: Any = FULL

    @staticmethod
    def _make_mirror(page: int) -> HostedRustMirror:
        return HostedRustMirror(page)

    def _make_leaves(self, order: str) -> None:
        """The core's own walk serves."""

    def set_hicache_enabled(self) -> None:
        self._binding.set_hicache_enabled()

    # -- what changed

    def _ask(self, node: Any) -> None:
        """Take note of where the KV and the state of ``node`` lie now; of a node that is gone too.

        Raises:
            AssertionError: it is gone, and something below it is not.
        """
        try:
            on_device = not self._binding.is_full_device_evicted(node.id)
        except KeyError:
            self._gone(node)
            return
        if node.on_device and not on_device:
            self.cache.evicting_kv(node)
        # What comes to the device is KV first, what leaves it the state: as the Python core tells.
        comes = on_device and not node.on_device
        if not comes:
            self._ask_state(node)
        if on_device != node.on_device:
            node.on_device = on_device
            self.cache.view.leaf_sets_updated(node)
            self.cache.view.leaf_sets_updated(node.parent)
        if comes:
            self._ask_state(node)

    def _ask_state(self, node: Any) -> None:
        holds = self._binding.get_component_device_value(node.id, _MAMBA) is not None
        beside = not holds and self._binding.component_has_host_value_only(node.id, _MAMBA)
        if (holds, beside) == (node.has_state, node.host_state):
            return
        if node.has_state and not holds:
            self.cache.evicting_state(node)
            self.mirror.drop_state(node)
        node.host_state = beside
        if beside:
            self._ask_slot(node)
        if holds and not node.has_state:
            self.mirror.put_state(node)
        self.cache.view.state_came_or_went(node)

    def _ask_copies(self, node: Any) -> None:
        """Take note of what of ``node`` has a copy on the host, and where."""
        copies = self._binding.build_storage_backup_spec(node.id, False)
        node.host_kv = None
        if copies is not None:
            self.mirror.copied_kv(node, copies.host_value)
        node.host_state = self._binding.component_has_host_value_only(node.id, _MAMBA)
        if node.host_state:
            self._ask_slot(node)

    def _ask_slot(self, node: Any) -> None:
        """Take note of where the host holds the state of ``node``, which the device does not."""
        (load, *_) = self.build_hicache_transfers(MAMBA, node.id, CacheTransferPhase.LOAD_BACK)
        self.mirror.state_lies_at(node, load.host_indices)

    def _gone(self, node: Any) -> None:
        for child in list(node.children.values()):
            self._ask(child)
        parent = node.parent
        if node.on_device:
            self.cache.evicting_kv(node)
        self.cache.prefix_deleted(node)
        self.mirror.remove(node)
        self.cache.view.removed(node)
        self.cache.view.leaf_sets_updated(parent)

    def _ask_all(self, nodes: Iterable[Any]) -> None:
        """Ask of these, in this order, and then of those above that lead to nothing any more."""
        find, above = self.mirror.find, []
        for node in nodes:
            if find(node.id) is node:
                above.append(node.parent)
                self._ask(node)
        for node in above:
            while find(node.id) is node and not (node.on_device or node.children):
                self._ask(node)
                node = node.parent

    def _ask_ids(self, ids: Iterable[int]) -> None:
        found = (self.mirror.find(id) for id in dict.fromkeys(ids))
        self._ask_all([node for node in found if node is not None])

    def _fill_evict_result(self, binding_result: Any, result: Any) -> Any:
        result = super()._fill_evict_result(binding_result, result)
        if result.host_frees:
            self.cache.report(self._forgotten, result.host_frees)
        return result

    def drive_host_eviction(self, component_type: Any, num_tokens: int) -> Any:
        self._host_short_of = component_type
        return super().drive_host_eviction(component_type, num_tokens)

    def _forgotten(self, host_frees: Any) -> None:
        """The host gave up these slots, of KV and of states; first what was short."""
        mirror = self.mirror
        freed = [mirror.freed_kv(slots) for slots in host_frees.get(FULL, ())]
        states = [mirror.freed_state(slots) for slots in host_frees.get(MAMBA, ())]
        freed = states + freed if self._host_short_of is MAMBA else freed + states
        if None in freed:
            # After a lost event nobody knows whose these slots were.
            freed = [n for n in mirror.nodes.values() if n.host_state or not n.on_device]
        self._ask_all(freed)

    # -- lookups and inserts

    def _matched(self, key: Any, result: Any) -> None:
        if result.last_visited_node_id is not None:
            self._learn(result.last_visited_node_id, key)
        node = self.mirror.node_by_id(result.best_match_node)
        if node.has_state:
            self.mirror.use_state(node)

    def _inserted(self, key: Any, node_id: int) -> None:
        self._learn(node_id, key)
        path = []
        node = self.mirror.node_by_id(node_id)
        while node.parent is not None:
            path.append(node.id)
            node = node.parent
        self._passed(path[::-1])
        super()._inserted(key, node_id)

    def _passed(self, ids: Sequence[int]) -> None:
        # Where an insert came by, the request's own KV lies on the device now.
        found = (self.mirror.find(id) for id in ids)
        self._ask_all([node for node in found if node is not None and not node.on_device])

    def _learnt(self, learnt: Learnt) -> None:
        for fresh, lower in learnt:
            if lower is None:
                self._compare_more(fresh)
        super()._learnt(learnt)

    # -- copies

    def commit_backup(self, node_id: int, host_indices: Any, comp_xfers: Any) -> None:
        super().commit_backup(node_id, host_indices, comp_xfers)
        self.cache.report(self._backed_up, node_id, host_indices)

    def _backed_up(self, node_id: int, kv: Any) -> None:
        if self._inserting is not None:
            self._learn(node_id, self._inserting.key)
        if len(kv):
            self.mirror.copied_kv(self.mirror.nodes[node_id], kv)

    def commit_load_back(
        self, node_id: int, device_indices: Any, kv_xfer: Any, comp_xfers: Any
    ) -> Any:
        actions = super().commit_load_back(node_id, device_indices, kv_xfer, comp_xfers)
        loaded = [*(kv_xfer.nodes_to_load or ()), node_id]
        self.cache.report(self._ask_ids, loaded)
        return actions

    def insert_host(self, node_id: int, key: Any, host_value: Any, hash_value: list[str]) -> Any:
        result = super().insert_host(node_id, key, host_value, hash_value)
        self.cache.report(self._prefetched, node_id, key, result.inserted_host_node)
        return result

    def _prefetched(self, node_id: int, key: Any, inserted: int | None) -> None:
        """KV came to the host from storage: nodes below ``node_id`` may be new, or copied now."""
        mirror, anchor = self.mirror, self.mirror.node_by_id(node_id)
        coming = Segment(key.raw_token_ids(), mirror.namespace_of(key))
        end = mirror.descend(anchor, coming)
        whole = mirror.whole_key(end, coming.namespace)
        if inserted is not None and mirror.find(inserted) is None:
            tokens = mirror.whole_key(anchor, coming.namespace).tokens + coming.tokens
            whole = Segment(tokens, coming.namespace)
        last = end.id if inserted is None else inserted
        if end is anchor and inserted is None:
            return
        (path,) = self._binding.collect_path_info([last])
        learnt = mirror.learn([(id, a, z) for id, _, a, z, *_ in path], whole)
        self._learnt(learnt)
        for id, *_ in path:
            node = mirror.nodes[id]
            if node.host_kv is None and self._binding.node_backuped(id):
                self._ask_copies(node)
                self.cache.view.leaf_sets_updated(node)
                self.cache.view.leaf_sets_updated(node.parent)

    def commit_hicache_transfers(
        self, node_id: int, phase: Any, comp_xfers: Any, **options: Any
    ) -> None:
        super().commit_hicache_transfers(node_id, phase, comp_xfers, **options)
        inserted = options.get("insert_result")
        if inserted is not None and inserted.inserted_host_node is not None:
            self.cache.report(self._ask_ids, (inserted.inserted_host_node,))

    # -- locks

    def _locked(self, node_id: int, kv: int, state: int) -> None:
        node = self.mirror.find(node_id)
        if node is None:
            return
        node.state_locks += state
        self.mirror.lock(node, kv)
        view = self.cache.view
        # Below what lies on the host alone the lowest node on the device is the evictable leaf.
        path = [node]
        while not path[-1].on_device and path[-1].parent is not None:
            path.append(path[-1].parent)
        if kv > 0:
            view.changed(path[-1])
        if state:
            view.changed(node)
        if kv < 0:
            for above in path:
                view.leaf_sets_updated(above)

    # -- eviction

    def evict_device_start(self, component_type: Any, request_cnt: int) -> None:
        super().evict_device_start(component_type, request_cnt)
        self._offered.clear()

    def evict_device_next_node(self, component_type: Any, tracker: Any) -> Any:
        if not self._chooses:
            return super().evict_device_next_node(component_type, tracker)
        if tracker[component_type] >= self._wanted:
            return NOTHING
        pool = POOLS[component_type]
        try:
            node = self.cache.choose_victim(pool, self._passed_over())
            if node is None:
                return NOTHING
            is_leaf = self._offered[node.id] = self.mirror.is_evictable_leaf(node)
            backs_up = not is_leaf and self._is_to_back_up(node)
        except Exception as error:
            self.cache.count_fallback(pool, error)
            return self._least_recent_once(component_type)
        if is_leaf:
            return EvictDeviceNextNodeResult(node_id=node.id)
        if backs_up:
            self._backing_up = node
            return EvictDeviceNextNodeResult(mamba_backup_node_id=node.id, made_progress=True)
        return self._evict_state_or_another(node)

    def _is_to_back_up(self, node: Any) -> bool:
        """Whether the host is to have a copy of the state of ``node`` before the device lets go."""
        if not self.is_write_back or node.host_kv is not None:
            return False
        _, missing = self.build_backup_spec(node.id)
        return MAMBA in missing and self.cache.is_worth_backup(node)

    def _passed_over(self) -> set[int]:
        """What this walk offered in the role that it has now, and which stayed: its backup failed.

        SGLang's own walk passes it over too.
        """
        find, is_leaf = self.mirror.find, self.mirror.is_evictable_leaf
        return {
            id
            for id, role in self._offered.items()
            if (node := find(id)) is not None and is_leaf(node) == role
        }

    def _least_recent_once(self, component_type: Any) -> Any:
        step = self._evict_least_recent(component_type)
        if step.node_id is not None and self._offered.get(step.node_id):
            return NOTHING
        if step.node_id is not None:
            self._offered[step.node_id] = True
        return step

    def _evict_state_or_another(self, node: Any) -> Any:
        try:
            return self._evict_state(node)
        except Exception as error:
            self.cache.count_fallback(POOLS[MAMBA], error)
            return self._least_recent_once(MAMBA)

    def finish_mamba_state_eviction(self, node_id: int) -> Any:
        node, self._backing_up = self._backing_up, None
        if node is None:
            result = super().finish_mamba_state_eviction(node_id)
            self.cache.report(self._ask_ids, (node_id,))
            return result
        if self.mirror.find(node_id) is not node or not node.has_state or node.state_locks:
            return EvictDeviceNextNodeResult(made_progress=True)
        if self.mirror.is_evictable_leaf(node):
            return EvictDeviceNextNodeResult(node_id=node_id, made_progress=True)
        return self._evict_state_or_another(node)

    def evict_device_leaf(self, node_id: int, is_write_back: bool) -> Any:
        self.cache.report(self._leaving_device, node_id)
        result = RustUnifiedTreeCore.evict_device_leaf(self, node_id, is_write_back)
        if result.backup_kv is None:
            self.cache.report(self._ask_ids, (node_id,))
        return result

    def demote(self, node_id: int) -> Any:
        result = super().demote(node_id)
        self.cache.report(self._ask_ids, (node_id,))
        return result

    def drop_subtree_no_host(self, node_id: int) -> Any:
        self.cache.report(self._leaving_device, node_id)
        result = super().drop_subtree_no_host(node_id)
        if result.is_dropped:
            self.cache.report(self._ask_ids, (node_id,))
        return result

    def _leaving_device(self, node_id: int) -> None:
        node = self.mirror.find(node_id)
        if node is not None:
            self.cache.leaving_device(node)

    def _state_evicted(self, node: Any) -> None:
        self.cache.report(self._ask_state, node)

    @staticmethod
    def _excess_above(node: Any) -> list[Any]:
        found: list[Any] = MambaRadixRustTreeCore._excess_above(node)
        return [above for above in found if above.kv_locks or above.has_child_on_device()]

    # -- after a lost event

    def _compare_more(self, node: Any) -> None:
        node.on_device = not self._binding.is_full_device_evicted(node.id)
        self._ask_copies(node)
