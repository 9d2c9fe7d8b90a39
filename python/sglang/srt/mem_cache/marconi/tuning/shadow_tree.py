"""A radix tree of prefixes without any data: what SGLang's tree of a hybrid model would hold.

A sequence is an array of chained block hashes: the hash at index i stands for all blocks up to and
including i, so that two sequences share their first k blocks exactly when they agree at k - 1. A
node therefore matches in O(1), and a path in O(nodes + log blocks).
"""

from __future__ import annotations

import heapq
from array import array
from collections import OrderedDict

from sglang.srt.mem_cache.marconi.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool


class ShadowNode:
    """Blocks ``start..end-1`` of a sequence, below ``parent``.

    Attributes:
        hashes: chained hashes of these blocks.
        last: the last of ``hashes``, 0 at the root.
        locks: running requests whose path leads through it.
        state_locks: running requests that stand at its end.
        touched: logical time of the last walk through it, by which KV leaves age.
        accessed: tick at which its state was created or consumed.
        queued: it has an entry in the tree's heap of leaves.
        prefix: what the policy knows of it.
    """

    __slots__ = (
        *("id", "parent", "children", "hashes", "start", "end", "last", "has_state"),
        *("locks", "state_locks", "touched", "accessed", "queued", "prefix"),
    )

    def __init__(self, id: int, parent: ShadowNode | None, hashes: array[int], start: int) -> None:
        self.id = id
        self.parent = parent
        self.children: dict[int, ShadowNode] = {}
        self.hashes = hashes
        self.start = start
        self.end = start + len(hashes)
        self.last = hashes[-1] if hashes else 0
        self.has_state = False
        self.locks = 0
        self.state_locks = 0
        self.touched = 0
        self.accessed = 0
        self.queued = False
        self.prefix: CachedPrefix | None = None

    @property
    def is_evictable_leaf(self) -> bool:
        return not self.children and not self.locks and self.parent is not None


class ShadowTree:
    """The tree, its two LRU orders and the policy's view of it.

    Every operation does what SGLang 0.5.23's tree core and the policy's view of it do, in the same
    order, so that victims are equal one by one. Lengths are in blocks; a policy is told tokens.

    Args:
        policy: orders the pools that it names; LRU orders the others.
        block_tokens: tokens a block.
    """

    def __init__(self, policy: EvictionPolicy, block_tokens: int) -> None:
        self.policy = policy
        self.block_tokens = block_tokens
        self.root = ShadowNode(0, None, array("Q"), 0)
        self.now = 0
        self._time = 0
        self._next_id = 1
        self._next_order = 0
        self._observed = bool(policy.pools)
        self._nodes: dict[int, ShadowNode] = {}
        self._marked: dict[int, ShadowNode] = {}
        self._states: OrderedDict[int, ShadowNode] = OrderedDict()
        self._leaves: list[tuple[int, int, ShadowNode]] = []

    def __len__(self) -> int:
        return len(self._nodes)

    def tick(self) -> None:
        """One tree operation (match, insert, eviction walk), as the view's clock counts them."""
        self.now += 1

    # -- walks

    def match(self, hashes: array[int], blocks: int) -> tuple[ShadowNode, int]:
        """Look up the first ``blocks`` blocks.

        Returns:
            The deepest node with a state (or the root), and how many blocks of KV are there.
        """
        self.tick()
        node, best, depth = self.root, self.root, 0
        while depth < blocks:
            child = node.children.get(hashes[depth])
            if child is None:
                break
            end = child.end
            if end <= blocks and child.last == hashes[end - 1]:
                node, depth = child, end
                if node.has_state:
                    best = node
                continue
            depth = _shared(child, hashes, min(end, blocks))
            self._split(child, depth)
            break
        if best.has_state:
            self._states.move_to_end(best.id)
            best.accessed = self.now
            if best.prefix is not None:
                best.prefix.last_access = self.now
                self.policy.on_hit(best.prefix, self.now)
        if blocks:
            self._touch_path(best)
        return best, depth

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
            depth = _shared(child, hashes, min(end, blocks))
            node = self._split(child, depth)
        if depth < blocks:
            node = self._add(node, hashes, depth, blocks)
        fresh = not node.has_state
        node.has_state = True
        self._states[node.id] = node
        self._states.move_to_end(node.id)
        node.accessed = self.now
        self._state_came_or_went(node)
        self._touch_path(node)
        return node, fresh, blocks - depth

    # -- locks

    def lock(self, node: ShadowNode) -> None:
        """Keep the path to ``node``, and its own state, from being evicted."""
        if node.parent is None:
            return
        node.state_locks += 1
        self._mark(node)
        above: ShadowNode | None = node
        while above is not None:
            above.locks += 1
            above = above.parent

    def unlock(self, node: ShadowNode) -> None:
        if node.parent is None:
            return
        node.state_locks -= 1
        self._mark(node)
        above: ShadowNode | None = node
        while above is not None:
            above.locks -= 1
            above = above.parent
        self._queue_leaf(node)

    # -- victims

    def victim(self, pool: Pool) -> ShadowNode | None:
        """Whom to evict next from ``pool``; ``None`` when nothing evictable is left."""
        if pool in self.policy.pools:
            self._refresh()
            prefix = self.policy.victim(pool, self.now)
            return None if prefix is None else self._nodes[prefix.id]
        if pool is Pool.STATE:
            return next((n for n in self._states.values() if not n.state_locks), None)
        return self._least_recent_leaf()

    def drop_state(self, node: ShadowNode) -> None:
        """Evict the state of ``node``, which keeps its KV."""
        node.has_state = False
        del self._states[node.id]
        self._state_came_or_went(node)

    def delete_leaf(self, node: ShadowNode) -> None:
        """Evict a leaf's KV, and its state with it."""
        parent = node.parent
        assert parent is not None and not node.children
        if node.has_state:
            del self._states[node.id]
        del parent.children[node.hashes[0]]
        del self._nodes[node.id]
        node.parent = None
        self._marked.pop(node.id, None)
        if node.prefix is not None:
            self.policy.on_remove(node.prefix)
        self._children_changed(parent, len(parent.children) + 1)
        self._queue_leaf(parent)

    def replace_policy(self, policy: EvictionPolicy) -> None:
        """Put another policy in force, which learns of all prefixes in their old order."""
        self._refresh()
        orders = {id: node.prefix.order for id, node in self._nodes.items() if node.prefix}
        self.policy, self._observed = policy, bool(policy.pools)
        for id in sorted(self._nodes, key=lambda id: (orders.get(id, self._next_order), id)):
            self._nodes[id].prefix = None
            self._mark(self._nodes[id])

    # -- internals

    def _add(self, parent: ShadowNode, hashes: array[int], start: int, end: int) -> ShadowNode:
        node = ShadowNode(self._next_id, parent, hashes[start:end], start)
        self._next_id += 1
        self._nodes[node.id] = node
        parent.children[hashes[start]] = node
        self._mark(node)
        self._children_changed(parent, len(parent.children) - 1)
        self._queue_leaf(node)
        return node

    def _split(self, lower: ShadowNode, at: int) -> ShadowNode:
        """Put a node that ends at depth ``at`` above ``lower``; the state stays below."""
        parent = lower.parent
        assert parent is not None
        kept = at - lower.start
        upper = ShadowNode(self._next_id, parent, lower.hashes[:kept], lower.start)
        self._next_id += 1
        self._nodes[upper.id] = upper
        upper.locks = lower.locks
        upper.accessed = lower.accessed
        parent.children[upper.hashes[0]] = upper
        lower.hashes, lower.start, lower.parent = lower.hashes[kept:], at, upper
        upper.children[lower.hashes[0]] = lower
        self._time += 1
        upper.touched = lower.touched = self._time
        self._mark(upper)
        self._mark(lower)
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
        if not node.queued and node.is_evictable_leaf:
            node.queued = True
            heapq.heappush(self._leaves, (node.touched, node.id, node))

    def _least_recent_leaf(self) -> ShadowNode | None:
        leaves = self._leaves
        while leaves:
            touched, id, node = leaves[0]
            if not node.is_evictable_leaf:
                heapq.heappop(leaves)
                node.queued = False
            elif node.touched != touched:
                heapq.heapreplace(leaves, (node.touched, id, node))
            else:
                return node
        return None

    # -- what the policy is told, marked and refreshed as the view of the live tree does it

    def _mark(self, node: ShadowNode) -> None:
        if self._observed and node.parent is not None:
            self._marked[node.id] = node

    def _children_changed(self, node: ShadowNode, before: int) -> None:
        if node.parent is not None and self._observed:
            self._marked[node.id] = node
            if (before > 1) != (len(node.children) > 1):
                self._mark_down_to_states(node)

    def _state_came_or_went(self, node: ShadowNode) -> None:
        if self._observed:
            self._marked[node.id] = node
            self._mark_down_to_states(node)

    def _mark_down_to_states(self, node: ShadowNode) -> None:
        stack = list(node.children.values())
        while stack:
            child = stack.pop()
            self._marked[child.id] = child
            if not child.has_state:
                stack.extend(child.children.values())

    def _refresh(self) -> None:
        marked, self._marked = self._marked, {}
        for node in marked.values():
            self._refresh_node(node)

    def _refresh_node(self, node: ShadowNode) -> None:
        known, is_leaf = node.prefix, node.is_evictable_leaf
        if not (node.has_state or is_leaf):
            if known is not None:
                node.prefix = None
                self.policy.on_remove(known)
            return
        above = node.parent
        assert above is not None
        tokens = self.block_tokens
        segment_from = above.end * tokens
        while above.parent is not None and not above.has_state and len(above.children) <= 1:
            above = above.parent
        exclusive_from = above.end * tokens
        while above.parent is not None and not above.has_state:
            above = above.parent
        reuse_from = above.end * tokens
        if known is None:
            node.prefix = CachedPrefix(
                id=node.id,
                order=self._next_order,
                depth=node.end * tokens,
                segment_from=segment_from,
                exclusive_from=exclusive_from,
                reuse_from=reuse_from,
                children=len(node.children),
                has_state=node.has_state,
                is_leaf=is_leaf,
                state_locked=node.state_locks > 0,
                last_access=node.accessed,
            )
            self._next_order += 1
            self.policy.on_insert(node.prefix, self.now)
            return
        known.segment_from = segment_from
        known.exclusive_from = exclusive_from
        known.reuse_from = reuse_from
        known.children = len(node.children)
        known.has_state = node.has_state
        known.is_leaf = is_leaf
        known.state_locked = node.state_locks > 0
        known.last_access = node.accessed
        self.policy.on_change(known)


def _shared(node: ShadowNode, hashes: array[int], limit: int) -> int:
    """Depth to which ``node`` and ``hashes`` agree, below ``limit``; at least one block does."""
    low, high = node.start + 1, limit
    while low < high:
        middle = (low + high + 1) // 2
        if node.hashes[middle - 1 - node.start] == hashes[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
