"""The kept order of KV leaves against the heap that stock builds at each walk, leaf by leaf."""

from __future__ import annotations

from types import SimpleNamespace

import tree_harness  # noqa: F401, hides the GPU before SGLang is imported
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sglang.srt.mem_cache.evict_policy import LRUStrategy
from sglang.srt.mem_cache.mamba_radix.lru_leaves import LeafOrder
from sglang.srt.mem_cache.unified_cache.components.full import FullComponent
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode


class StockWalk:
    """Stock's own methods over a set of leaves."""

    component_type = FullComponent.component_type
    session_ref_eviction_strategy = staticmethod(LRUStrategy().get_priority)
    start = FullComponent._evict_device_start
    step = FullComponent._evict_device_next_node

    def __init__(self, leaves: set[UnifiedTreeNode]) -> None:
        self.tree_core = SimpleNamespace(evictable_device_leaves=leaves)
        self.start(1)

    def _ensure_eviction_strategy(self) -> None: ...

    def next(self) -> int | None:
        return self.step({self.component_type: 0}, {}, {}, [])


class Forests(RuleBasedStateMachine):
    """Trees that grow, are touched, locked and eaten from their leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.nodes: list[UnifiedTreeNode] = []
        self.locked: set[UnifiedTreeNode] = set()
        self.leaves: set[UnifiedTreeNode] = set()
        self.order = LeafOrder(self.leaves)

    def pick(self, choice: int) -> UnifiedTreeNode | None:
        return self.nodes[choice % len(self.nodes)] if self.nodes else None

    def touch(self, node: UnifiedTreeNode) -> None:
        self.now += 1
        node.last_access_time = self.now

    def update(self, node: UnifiedTreeNode | None) -> None:
        """As the tree core keeps its set of leaves, and tells of those that come."""
        if node is None:
            return
        if node in self.nodes and node not in self.locked and not node.children:
            if node not in self.leaves:
                self.leaves.add(node)
                self.order.became_leaf(node)
        else:
            self.leaves.discard(node)

    @rule(choice=st.none() | st.integers(0, 30))
    def grow(self, choice: int | None) -> None:
        node = UnifiedTreeNode(())
        node.parent = None if choice is None else self.pick(choice)
        self.touch(node)
        self.nodes.append(node)
        if node.parent is not None:
            node.parent.children[node.id] = node
        self.update(node)
        self.update(node.parent)

    @rule(choice=st.integers(0, 30))
    def use(self, choice: int) -> None:
        node = self.pick(choice)
        while node is not None:
            self.touch(node)
            node = node.parent

    @rule(choice=st.integers(0, 30))
    def lock_or_unlock(self, choice: int) -> None:
        node = self.pick(choice)
        if node is not None:
            self.locked ^= {node}
            self.update(node)

    @rule(
        fates=st.lists(
            st.sampled_from(["gone", "gone", "gone", "stays", "with its parent"]), max_size=12
        )
    )
    def walk(self, fates: list[str]) -> None:
        stock = StockWalk(self.leaves)
        ours = self.order.begin_walk()
        for fate in fates:
            node = ours.next()
            assert (None if node is None else node.id) == stock.next()
            if node is None:
                break
            if fate == "stays":
                continue
            self.remove(node)
            above = node.parent
            if fate == "with its parent" and above in self.leaves:
                self.remove(above)
        ours.end_walk()

    def remove(self, node: UnifiedTreeNode) -> None:
        self.nodes.remove(node)
        if node.parent is not None:
            del node.parent.children[node.id]
        self.update(node)
        self.update(node.parent)

    @rule()
    def forget_what_is_gone(self) -> None:
        self.order._collect()

    @invariant()
    def is_sound(self) -> None:
        entries = {id: node for _, id, node in self.order._heap}
        assert len(entries) == len(self.order._heap), "a node stands in the heap twice"
        assert {node.id for node in self.leaves} <= set(entries)
        assert set(entries) == set(self.order._since)
        assert all(time <= node.last_access_time for time, _, node in self.order._heap)


Forests.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestForests = Forests.TestCase
