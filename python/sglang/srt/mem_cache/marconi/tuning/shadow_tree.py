"""A radix tree of prefixes without any data: what SGLang's tree of a hybrid model would hold."""

from __future__ import annotations

from array import array
from collections import OrderedDict

from sglang.srt.mem_cache.marconi.admission.given_states import GivenStates
from sglang.srt.mem_cache.marconi.eviction.policy import (
    EvictionPolicy,
    HintObserver,
    LookObserver,
)
from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.marconi.tuning.leaf_heap import LeafHeap
from sglang.srt.mem_cache.marconi.tuning.shadow_node import ShadowNode, shared_depth
from sglang.srt.mem_cache.marconi.tuning.shadow_view import ShadowView


class ShadowTree:
    """The tree, its two LRU orders and the policy's view of it.

    Every operation does what SGLang 0.5.23's tree core and the policy's view of it do, in the same
    order, so that victims are equal one by one. Lengths are in blocks; a policy is told tokens.

    Args:
        policy: orders the pools that it names; LRU orders the others.
        block_tokens: tokens a block.
        given: told what happens to the states that requests give, if there is one.
    """

    node_type: type[ShadowNode] = ShadowNode
    view_type: type[ShadowView] = ShadowView

    def __init__(
        self, policy: EvictionPolicy, block_tokens: int, given: GivenStates | None = None
    ) -> None:
        self._given = given
        self.view = self.view_type(policy, block_tokens)
        self.root = self.node_type(0, None, array("Q"), 0)
        self.now = 0
        self._time = 0
        self._next_id = 1
        self._nodes: dict[int, ShadowNode] = {}
        self._states: OrderedDict[int, ShadowNode] = OrderedDict()
        self._leaves: LeafHeap[ShadowNode] = LeafHeap(lambda node: node.is_evictable_leaf)

    def __len__(self) -> int:
        return len(self._nodes)

    def tick(self) -> None:
        """A use, an insert or an eviction walk, as the view's clock counts them."""
        self.now += 1

    # -- life cycle

    def forget_all(self) -> None:
        """Report to the policy that all is gone; the tree must not be used any more."""
        for node in self._nodes.values():
            self.view.removed(node)
        self.view.report_left()

    def go_on(self, before: ShadowTree) -> None:
        """Take up the clock of the tree before a flush, and give no id again."""
        self.now = before.now
        self._next_id = before._next_id

    # -- walks

    def match(self, hashes: array[int], blocks: int) -> tuple[ShadowNode, int]:
        """Look up the first ``blocks`` blocks for an admitted request, and use what is there.

        Returns:
            The deepest node with a state (or the root), and how many blocks of KV are there.
        """
        best, depth = self.look(hashes, blocks)
        self.use(best)
        return best, depth

    def look(self, hashes: array[int], blocks: int) -> tuple[ShadowNode, int]:
        """Look up the first ``blocks`` blocks: no use, but the LRU orders are touched.

        Returns:
            As :meth:`match`.
        """
        node, best, depth = self.root, self.root, 0
        while depth < blocks:
            child = node.children.get(hashes[depth])
            if child is None:
                break
            end = child.end
            if end <= blocks and child.last == hashes[end - 1]:
                node, depth = child, end
                if node.survives:
                    best = node
                continue
            depth = shared_depth(child, hashes, min(end, blocks))
            self._split(child, depth)
            break
        if best.has_state:
            self._states.move_to_end(best.id)
            if best.prefix is not None and isinstance(self.policy, LookObserver):
                self.tick()
                self.policy.on_look(best.prefix, self.now)
        if blocks:
            self._touch_path(best)
        return best, depth

    def use(self, node: ShadowNode) -> None:
        """A request resumes at ``node``, or at the root."""
        self.tick()
        if not node.has_state:
            return
        node.accessed = self.now
        if node.prefix is not None:
            node.prefix.last_access = self.now
            self.policy.on_hit(node.prefix, self.now)
        if self._given is not None:
            self._given.looked_up(node.id)

    def insert(
        self, node: ShadowNode, hashes: array[int], blocks: int
    ) -> tuple[ShadowNode, bool, int]:
        """Put a state at the end of the first ``blocks`` blocks, below the locked ``node``.

        Returns:
            The node that ends there, whether it took a state that it did not have, and how many
            blocks of KV are new to the tree.
        """
        self.tick()
        depth = node.end
        while depth < blocks:
            child = node.children.get(hashes[depth])
            if child is None:
                break
            end = child.end
            if end <= blocks and child.last == hashes[end - 1]:
                node, depth = child, end
                continue
            depth = shared_depth(child, hashes, min(end, blocks))
            node = self._split(child, depth)
        if depth < blocks:
            node = self._add(node, hashes, depth, blocks)
        fresh = not node.has_state
        node.has_state = True
        self._states[node.id] = node
        self._states.move_to_end(node.id)
        node.accessed = self.now
        self.view.state_came_or_went(node)
        if self._given is not None:
            self._given.created(node.id)
        self._touch_path(node)
        return node, fresh, blocks - depth

    def hinted(self, node: ShadowNode, hint: Hint) -> None:
        """The request that left ``node`` as its tail, and let go of it, said so."""
        if isinstance(self.policy, HintObserver):
            self.policy.on_hint(node.id, hint)

    # -- locks

    def lock(self, node: ShadowNode) -> None:
        """Keep the path to ``node``, and its own state, from being evicted."""
        if node.parent is None:
            return
        node.state_locks += 1
        self.view.mark(node)
        above: ShadowNode | None = node
        while above is not None:
            above.locks += 1
            above = above.parent

    def unlock(self, node: ShadowNode) -> None:
        """Let go of the path to ``node``."""
        if node.parent is not None:
            node.state_locks -= 1
            self.view.mark(node)
            above: ShadowNode | None = node
            while above is not None:
                above.locks -= 1
                above = above.parent
            self._queue_leaf(node)
        self.view.report_some(self.now)

    # -- victims

    def victim(self, pool: Pool) -> ShadowNode | None:
        """Whom to evict next from ``pool``; ``None`` when nothing evictable is left."""
        if pool in self.policy.pools:
            self.view.refresh(self.now)
            prefix = self.policy.victim(pool, self.now)
            return None if prefix is None else self._nodes[prefix.id]
        if pool is Pool.STATE:
            return next((n for n in self._states.values() if not n.state_locks), None)
        return self._leaves.first()

    def beyond_cap(self, tail: ShadowNode, cap: int) -> list[ShadowNode]:
        """The shallowest nodes above ``tail`` whose states are more than ``cap`` on its path.

        Forks and locked states stay, as in SGLang, so that fewer may be returned.
        """
        holders: list[ShadowNode] = []
        above: ShadowNode | None = tail
        while above is not None:
            if above.has_state:
                holders.append(above)
            above = above.parent
        excess = max(len(holders) - cap, 0)
        loose = [n for n in holders[:0:-1] if not n.state_locks and len(n.children) == 1]
        return loose[:excess]

    def node(self, id: int) -> ShadowNode | None:
        """The node with that id, ``None`` if it left the tree."""
        return self._nodes.get(id)

    def drop_state(self, node: ShadowNode) -> None:
        """Evict the state of ``node``, which keeps its KV."""
        node.has_state = False
        del self._states[node.id]
        if self._given is not None:
            self._given.left(node.id)
        self.view.state_came_or_went(node)

    def delete_leaf(self, node: ShadowNode) -> None:
        """Evict a leaf's KV, and its state with it."""
        parent = node.parent
        assert parent is not None and not node.children
        if node.has_state:
            del self._states[node.id]
        if self._given is not None:
            self._given.left(node.id)
            self._given.deleted(node.id)
        del parent.children[node.hashes[0]]
        del self._nodes[node.id]
        node.parent = None
        self.view.removed(node)
        self.view.children_changed(parent, len(parent.children) + 1)
        self._queue_leaf(parent)

    @property
    def policy(self) -> EvictionPolicy:
        return self.view.policy

    # -- internals

    def _add(self, parent: ShadowNode, hashes: array[int], start: int, end: int) -> ShadowNode:
        node = self.node_type(self._next_id, parent, hashes[start:end], start)
        self._next_id += 1
        self._nodes[node.id] = node
        parent.children[hashes[start]] = node
        self.view.mark(node)
        self.view.children_changed(parent, len(parent.children) - 1)
        self._queue_leaf(node)
        return node

    def _split(self, lower: ShadowNode, at: int) -> ShadowNode:
        """Put a node that ends at depth ``at`` above ``lower``; the state stays below."""
        parent = lower.parent
        assert parent is not None
        kept = at - lower.start
        upper = self.node_type(self._next_id, parent, lower.hashes[:kept], lower.start)
        self._next_id += 1
        self._nodes[upper.id] = upper
        upper.locks = lower.locks
        upper.accessed = lower.accessed
        parent.children[upper.hashes[0]] = upper
        lower.hashes, lower.start, lower.parent = lower.hashes[kept:], at, upper
        upper.children[lower.hashes[0]] = lower
        self._time += 1
        upper.touched = lower.touched = self._time
        self.view.mark(upper)
        self.view.mark(lower)
        if self._given is not None:
            self._given.parted(lower.id)
        return upper

    def _touch_path(self, node: ShadowNode) -> None:
        # Nodes of one path are never leaves at the same time, so one stamp serves them all.
        self._time += 1
        time = self._time
        above: ShadowNode | None = node
        while above is not None:
            above.touched = time
            above = above.parent

    def _queue_leaf(self, node: ShadowNode) -> None:
        self._leaves.offer(node)
