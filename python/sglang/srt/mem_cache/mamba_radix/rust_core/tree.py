"""SGLang 0.5.23's Rust tree core, reporting events and evicting a policy's victims.

The Rust core stays the owner of the tree. What the policy must know is read off the results of its
calls into a :class:`TreeMirror`, and a victim is evicted by operations that the core has anyway:

- an evictable leaf by its id;
- the state of a node with one child as an excess state of the path to that child, while the other
  states above are locked against it: O(nodes above);
- any other state (a fork's, or a leaf's whose KV alone is locked) as the least recently used one,
  while all states that were used less recently are locked: O(such states), about a microsecond
  each. Policies give up forks last or seldom.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.mamba_radix.events import HostCache
from sglang.srt.mem_cache.mamba_radix.lru_leaves import LeafOrder
from sglang.srt.mem_cache.mamba_radix.rust_core.leaves import Learnt, MirrorLeaves
from sglang.srt.mem_cache.mamba_radix.rust_core.mirror import MirrorNode, Segment, TreeMirror
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.marconi.tree import Namespace, namespace_of
from sglang.srt.mem_cache.rust_tree_core.adapter import RustUnifiedTreeCore
from sglang.srt.mem_cache.rust_tree_core.extension import bindings
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import (
    EvictDeviceNextNodeResult,
)

if TYPE_CHECKING:
    import torch
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams

FULL, MAMBA = ComponentType.FULL, ComponentType.MAMBA
_STATE_ONLY = [int(FULL)]
_MAMBA = int(MAMBA)
_COMPONENTS = {int(component): component for component in ComponentType}
#: The end of a walk; what is empty nobody drains.
NOTHING = EvictDeviceNextNodeResult()

POOLS = {FULL: Pool.KV, MAMBA: Pool.STATE}


def _step(
    frees: dict[int, list[torch.Tensor]], tracker: dict[int, int], actions: list[Any]
) -> EvictDeviceNextNodeResult:
    """What a step evicted: tensors to free and how much that is, by number of a component."""
    return EvictDeviceNextNodeResult(
        device_frees={_COMPONENTS[number]: tensors for number, tensors in frees.items()},
        host_frees={},
        tracker={_COMPONENTS[number]: count for number, count in tracker.items()},
        cache_actions=actions,
        made_progress=True,
    )


def _evicting_all_excess(**options: Any) -> Any:
    """The core's parameters, with every state but a path's tail in excess of the path's cap."""
    return bindings.TreeCoreInitParamsBinding(**{**options, "mamba_max_states_per_path": 0})


class SGLangKeys:
    """Answers of a mirror about SGLang's keys too."""

    @staticmethod
    def tokens_of(key: Any) -> Sequence[int]:
        tokens: Sequence[int] = key.tokens if isinstance(key, Segment) else key.raw_token_ids()
        return tokens

    @staticmethod
    def namespace_of(key: Any) -> Namespace:
        return key.namespace if isinstance(key, Segment) else namespace_of(key)


class RustMirror(SGLangKeys, TreeMirror):
    """Where all lies on the device."""


class MambaRadixRustTreeCore(RustUnifiedTreeCore):
    """The Rust tree core, telling the cache's view what happens to its nodes.

    It needs the core's path cap for itself, so the operator's is applied here.

    Args:
        states_per_path: the operator's cap, ``--mamba-max-states-per-path``; -1 for none.
    """

    _bindings = SimpleNamespace(
        **{
            **{name: value for name, value in vars(bindings).items() if name[0] != "_"},
            "TreeCoreInitParamsBinding": _evicting_all_excess,
        }
    )

    def __init__(
        self, params: CacheInitParams, cache: HostCache, *, states_per_path: int = -1
    ) -> None:
        self.cache = cache
        self._states_per_path = states_per_path
        self.mirror = self._make_mirror(params.page_size)
        self._leaves = self._make_leaves(params.eviction_policy)
        self._chooses = False
        self._lru_walk: LeafOrder | None = None
        self._wanted = 0
        self._inserting: Any = None
        cache.attach_tree(self.mirror)
        super().__init__(replace(params, component_registry_override=None))

    def reset(self) -> None:
        super().reset()
        self.mirror.clear()
        if self._leaves is not None:
            self._leaves.clear()
        self.cache.forget_tree()

    @staticmethod
    def _make_mirror(page: int) -> TreeMirror:
        return RustMirror(page)

    def _make_leaves(self, order: str) -> MirrorLeaves | None:
        """``None`` where nobody asks for SGLang's order, as the policy has its own."""
        keeps_lru = order.lower() == "lru" and Pool.KV not in self.cache.view.policy.pools
        return MirrorLeaves(self.mirror) if keeps_lru else None

    # -- lookups and inserts

    def match_prefix(self, params: Any) -> Any:
        self._make_room_to_mark()
        result = super().match_prefix(params)
        self.cache.report(self._matched, params.key, result)
        return result

    def begin_insert(self, params: Any) -> Any:
        if not self.cache.serves_probe:
            self.cache.view.tick()
        self._make_room_to_mark()
        self._inserting = params
        step = super().begin_insert(params)
        if step.result is None and not step.actions:
            # It waits for an eviction of excess states that is not wanted.
            step = super().resume_insert()
        return self._noting_insert(step)

    def _make_room_to_mark(self) -> None:
        view = self.cache.view
        if view.is_behind:
            self.cache.attempt(view.report_some)

    def resume_insert(self) -> Any:
        return self._noting_insert(super().resume_insert())

    def _cache_actions_from_tagged(self, actions: Sequence[tuple[Any, ...]]) -> list[Any]:
        """All, but without a cap no eviction of a path's excess states."""
        return [
            self._cache_action_from_tagged(action)
            for action in actions
            if self._states_per_path >= 0 or action[0] != "mamba_evict_excess_path_states"
        ]

    def _matched(self, key: Any, result: Any) -> None:
        last = result.last_visited_node_id
        learnt = () if last is None else self._learn(last, key)
        node = self.mirror.node_by_id(result.best_match_node)
        if self._leaves is not None:
            self._leaves.matched(node, learnt)
        if node.has_state:
            self.mirror.use_state(node)

    def _noting_insert(self, step: Any) -> Any:
        result = step.result
        if result is not None:
            if not result.rotation_tail_declined:
                self._note_insert(result.last_device_node)
            self._inserting = None
        return step

    def _note_insert(self, node_id: int) -> None:
        """The insert under way put its state at this node; once an insert."""
        params, self._inserting = self._inserting, None
        if params is not None:
            self.cache.report(self._inserted, params.key, node_id)

    def _inserted(self, key: Any, node_id: int) -> None:
        learnt = self._learn(node_id, key)
        node = self.mirror.node_by_id(node_id)
        if node.parent is None:
            return
        if self._leaves is not None:
            self._leaves.inserted(node, learnt)
        if node.has_state:
            self.mirror.use_state(node)
        else:
            self.mirror.put_state(node)
        self.cache.state_created(node)

    def _learn(self, node_id: int, key: Any) -> Learnt:
        """Take note of new nodes on the path to one at which a walk along ``key`` ended."""
        if self.mirror.find(node_id) is not None:
            return ()
        (path,) = self._binding.collect_path_info([node_id])
        self._passed([id for id, *_ in path])
        whole = Segment(key.raw_token_ids(), RustMirror.namespace_of(key))
        learnt = self.mirror.learn([(id, a, z) for id, _, a, z, _, _ in path], whole)
        self.cache.report(self._learnt, learnt)
        return learnt

    def _passed(self, ids: Sequence[int]) -> None:
        """Nodes below these are about to be learnt."""

    def _learnt(self, learnt: Learnt) -> None:
        updated = self.cache.view.leaf_sets_updated
        for fresh, lower in learnt:
            beside = lower or fresh.parent
            assert beside is not None
            if self._leaves is not None:
                self._leaves.changed(fresh)
                self._leaves.changed(beside)
            if lower is not None:
                self.cache.split(fresh, lower)
            updated(fresh)
            updated(beside)

    def evict_excess_path_states(
        self, tail_node_id: int, device_frees: Any, host_frees: Any, cache_actions: list[Any]
    ) -> None:
        """Evict what exceeds the operator's cap on the path to a node, the shallowest first."""
        # SGLang asks for it between the steps of the insert.
        self._note_insert(tail_node_id)
        held: list[int] = []
        try:
            excess = self._exceeding_cap(self.mirror.node_by_id(tail_node_id), held)
            if excess:
                super().evict_excess_path_states(
                    tail_node_id, device_frees, host_frees, cache_actions
                )
            for node in excess:
                self.cache.report(self._state_evicted, node)
        except Exception as error:
            self.cache.count_error(
                "capping the states of a path", error, "the path keeps more than its cap"
            )
        finally:
            self._let_go(held)

    def _exceeding_cap(self, tail: MirrorNode, held: list[int]) -> list[MirrorNode]:
        """Nodes above ``tail`` whose states are to go; the others that could are held."""
        count, eligible = int(tail.has_state), self._excess_above(tail)
        above = tail.parent
        while above is not None and above.parent is not None:
            count += above.has_state
            above = above.parent
        excess = max(0, count - self._states_per_path)
        eligible.reverse()
        self._hold(eligible[excess:], held)
        return eligible[:excess]

    # -- what admission asks

    def find(self, node_id: int) -> MirrorNode | None:
        return self.mirror.find(node_id)

    @staticmethod
    def children_beyond(node: MirrorNode) -> int:
        """How many prefixes go on from the state of ``node``; 0 where it cannot leave."""
        return len(node.children) if node.has_state and not node.state_locks else 0

    def take_back_state(self, node: MirrorNode) -> None:
        """Evict the state of ``node``, which has one child; its KV stays.

        Raises:
            Exception: it could not be singled out; nothing was evicted.
        """
        self.cache._apply_eviction_result(self._evict_state_above_child(node))

    # -- locks

    def inc_lock_ref(self, node_id: int, skip_lock_components: Sequence[Any] = ()) -> Any:
        result = super().inc_lock_ref(node_id, skip_lock_components)
        kv, state = FULL not in skip_lock_components, MAMBA not in skip_lock_components
        self.cache.report(self._locked, node_id, kv, state)
        return result

    def dec_lock_ref(self, node_id: int, params: Any, skip_swa: bool = False) -> Any:
        result = super().dec_lock_ref(node_id, params, skip_swa)
        skipped = params.skipped_lock_components
        self.cache.report(self._locked, node_id, -(FULL not in skipped), -(MAMBA not in skipped))
        return result

    def inc_full_pin(self, node_id: int) -> None:
        super().inc_full_pin(node_id)
        self.cache.report(self._locked, node_id, 1, 0)

    def dec_full_pin(self, node_id: int) -> None:
        super().dec_full_pin(node_id)
        self.cache.report(self._locked, node_id, -1, 0)

    def _locked(self, node_id: int, kv: int, state: int) -> None:
        node = self.mirror.find(node_id)
        if node is not None:
            node.kv_locks += kv
            node.state_locks += state
            if self._leaves is not None:
                self._leaves.changed(node)
            view = self.cache.view
            (view.changed if state or kv > 0 else view.leaf_sets_updated)(node)

    # -- eviction

    def evict_device_start(self, component_type: ComponentType, request_cnt: int) -> None:
        self._wanted = request_cnt
        self._chooses = self.cache.begin_walk(POOLS[component_type])
        self._lru_walk = None
        if self._chooses:
            return
        if component_type is FULL and self._leaves is not None and self.cache.view.is_sound:
            self._lru_walk = self._leaves.walk()
        else:
            super().evict_device_start(component_type, request_cnt)

    def evict_device_next_node(
        self, component_type: ComponentType, tracker: dict[ComponentType, int]
    ) -> Any:
        if not self._chooses and self._lru_walk is None:
            result = super().evict_device_next_node(component_type, tracker)
            self._note_states(result)
            return result
        if tracker[component_type] >= self._wanted:
            return NOTHING
        pool = POOLS[component_type]
        try:
            node = self._lru_walk.next() if self._lru_walk else self.cache.choose_victim(pool)
        except Exception as error:
            self.cache.count_fallback(pool, error)
            return self._evict_least_recent(component_type)
        if node is None:
            return NOTHING
        try:
            if self.mirror.is_evictable_leaf(node):
                return self._evict_leaf(node)
            return self._evict_state(node)
        except Exception as error:
            # Nothing was evicted: what follows an eviction is reported, and raises nothing.
            self.cache.count_fallback(pool, error)
            return self._evict_least_recent(component_type)

    def evict_either(self, short: Pool) -> Iterator[dict[ComponentType, int]]:
        """Evict from both pools in the policy's order, one victim a step: a leaf whole, or a state.

        Args:
            short: the pool whose shortage this is to end.

        Yields:
            Tokens and states that went, by component.
        """
        while True:
            start = time.perf_counter()
            step = self._evict_lowest(short)
            if step is None:
                return
            if step.node_id is not None:
                step = self.evict_device_leaf(step.node_id, self.is_write_back)
            self.cache._apply_eviction_result(step)
            self.cache.update_eviction_metrics(step.tracker.get(FULL, 0), start)
            yield step.tracker

    def _evict_lowest(self, short: Pool) -> Any | None:
        """Evict what the policy orders lowest of both pools; ``None`` if nothing is left."""
        try:
            node = self.cache.choose_victim(None)
            if node is None:
                return None
            if self.mirror.is_evictable_leaf(node):
                return self._evict_leaf(node)
            return self._evict_state(node)
        except Exception as error:
            self.cache.count_fallback(short, error)
        # SGLang too lets KV give before states, whichever of the two is short.
        for component_type in (FULL, MAMBA):
            step = self._evict_least_recent(component_type)
            if step.node_id is not None or step.made_progress:
                return step
        return None

    def evict_device_end(self, component_type: ComponentType) -> None:
        if self._lru_walk is not None:
            self._lru_walk.end_walk()
        elif not self._chooses:
            super().evict_device_end(component_type)
        self.cache.end_walk()

    def evict_device_leaf(self, node_id: int, is_write_back: bool) -> Any:
        node = self.mirror.find(node_id)
        if node is not None:
            self.cache.report(self._evicting_leaf, node)
        result = super().evict_device_leaf(node_id, is_write_back)
        if node is not None:
            self.cache.report(self._leaf_evicted, node)
        return result

    def _evicting_leaf(self, node: MirrorNode) -> None:
        self.cache.evicting_kv(node)
        self.cache.prefix_deleted(node)

    def _leaf_evicted(self, node: MirrorNode) -> None:
        self.mirror.remove(node)
        if self._leaves is not None:
            self._leaves.removed(node)
        self.cache.view.removed(node)
        self.cache.view.leaf_sets_updated(node.parent)

    def _evict_leaf(self, node: MirrorNode) -> Any:
        """Evict a leaf in the step that chose it: only a host tier has something to do between.

        Raises:
            Exception: the core would not evict it; nothing was.
        """
        self.cache.report(self._evicting_leaf, node)
        freed = self._binding.evict_device_leaf(node.id)
        self.cache.report(self._leaf_evicted, node)
        actions = freed.cache_actions
        return _step(
            freed.new_device_frees,
            freed.tracker,
            self._cache_actions_from_tagged(actions) if actions else [],
        )

    def _evict_state(self, node: MirrorNode) -> Any:
        """Evict the unlocked state of a node that is no evictable leaf.

        Raises:
            Exception: it could not be singled out; nothing was evicted.
        """
        if len(node.children) == 1:
            return self._evict_state_above_child(node)
        held: list[int] = []
        try:
            self._hold(self._used_before(node), held)
            return self._evict_least_recent(MAMBA, node)
        finally:
            self._let_go(held)

    def _evict_state_above_child(self, node: MirrorNode) -> Any:
        """The same for a node with one child.

        Raises:
            Exception: it could not be singled out; nothing was evicted.
        """
        held: list[int] = []
        (below,) = node.children.values()
        try:
            self._hold(self._excess_above(node), held)
            freed = self._binding.evict_excess_path_states(below.id)
        finally:
            self._let_go(held)
        frees = freed.new_device_frees
        states = frees.get(_MAMBA)
        if not states:
            raise RuntimeError(f"the tree core kept the state of node {node.id}")
        # All other states that it could have taken were held.
        self.cache.report(self._state_evicted, node)
        return _step(frees, {_MAMBA: len(states)}, [])

    def _evict_least_recent(
        self, component_type: ComponentType, expected: MirrorNode | None = None
    ) -> Any:
        """One step of the core's own walk; ``expected`` is whose state it must take, if known."""
        super().evict_device_start(component_type, 1)
        result = super().evict_device_next_node(component_type, {})
        if result.mamba_backup_node_id is not None:
            result = super().finish_mamba_state_eviction(result.mamba_backup_node_id)
        super().evict_device_end(component_type)
        self._note_states(result, expected)
        return result

    def _note_states(self, result: Any, expected: MirrorNode | None = None) -> None:
        """Take note of the states that a step took out of nodes that stay."""
        taken = sum(len(states) for states in result.device_frees.get(MAMBA, ()))
        if taken:
            self.cache.report(self._states_evicted, taken, expected)

    def _states_evicted(self, taken: int, expected: MirrorNode | None) -> None:
        """Find the ``taken`` nodes whose states are gone, from the least recently used on.

        Raises:
            LookupError: there are not so many.
        """
        left = self._binding.get_component_device_value
        suspects = self.mirror.states.values() if expected is None else (expected,)
        gone = islice((node for node in suspects if left(node.id, _MAMBA) is None), taken)
        found = list(gone)
        for node in found:
            self._state_evicted(node)
        if len(found) < taken:
            raise LookupError(f"the tree core took {taken} states, {len(found)} are missing")

    def _state_evicted(self, node: MirrorNode) -> None:
        self.cache.report(self.cache.evicting_state, node)
        self.mirror.drop_state(node)
        self.cache.view.state_came_or_went(node)

    def _hold(self, nodes: Iterable[MirrorNode], held: list[int]) -> None:
        """Lock the unlocked states of ``nodes``, without telling the view.

        Args:
            held: takes the ids of the nodes that it locked, for :meth:`_let_go`.
        """
        for node in nodes:
            if not node.state_locks:
                self._binding.inc_lock_ref(node.id, _STATE_ONLY)
                held.append(node.id)

    def _let_go(self, held: list[int]) -> None:
        for id in held:
            receipt = bindings.DecLockRefParamsBinding(
                node_id=id, skipped_lock_components=_STATE_ONLY
            )
            self._binding.dec_lock_ref(id, receipt)

    def _used_before(self, node: MirrorNode) -> Iterator[MirrorNode]:
        """Nodes whose states were used less recently than that of ``node``."""
        for other in self.mirror.states.values():
            if other is node:
                return
            yield other

    @staticmethod
    def _excess_above(node: MirrorNode) -> list[MirrorNode]:
        """Nodes above ``node`` whose states the core would evict as a path's excess too."""
        found = []
        above = node.parent
        while above is not None and above.parent is not None:
            if above.has_state and len(above.children) == 1 and not above.state_locks:
                found.append(above)
            above = above.parent
        return found

    # -- after a lost event

    def verify_mirror(self) -> None:
        """Compare the mirror with the tree, node by node, and mend what can be mended.

        Nodes that are gone are dropped, states are asked for. Where more is wrong, and no request
        holds a lock that would be forgotten, the mirror begins anew: it learns each node when a
        request comes by, and SGLang's LRU evicts the rest, until it knows all of the tree again.

        Raises:
            RuntimeError: the mirror is not the tree, or not all of it yet.
        """
        idle = not (self.full_protected_size() or self.mamba_protected_size())
        try:
            self._compare_mirror()
        except RuntimeError:
            if idle:
                self.mirror.clear()
                if self._leaves is not None:
                    self._leaves.start_over()
            raise
        if idle:
            for node in self.mirror.nodes.values():
                node.kv_locks = node.state_locks = 0
        if self._leaves is not None:
            self._leaves.start_over()

    def _compare_mirror(self) -> None:
        ends = {}
        for node in list(self.mirror.nodes.values()):
            try:
                (path,) = self._binding.collect_path_info([node.id])
                ends[node.id] = path[-1]
            except KeyError:
                self.mirror.forget(node)
        tokens = 0
        for node in list(self.mirror.nodes.values()):
            id, _, start, end, _, children = ends[node.id]
            if (id, end - start, children) != (node.id, len(node.key), len(node.children)):
                raise RuntimeError(f"the mirror is wrong about node {node.id}")
            self._compare_more(node)
            tokens += self.mirror.device_tokens(node)
            holds = self._binding.get_component_device_value(node.id, _MAMBA) is not None
            if holds and not node.has_state:
                self.mirror.put_state(node)
            elif node.has_state and not holds:
                self.mirror.drop_state(node)
        whole = self.full_evictable_size() + self.full_protected_size()
        if tokens != whole:
            raise RuntimeError(f"the mirror knows {tokens} of {whole} tokens")

    def _compare_more(self, node: Any) -> None:
        """What else is known of ``node``."""

    # -- what this core does not do

    def set_hicache_enabled(self) -> None:
        raise NotImplementedError("this core was made for a cache without a host tier")
