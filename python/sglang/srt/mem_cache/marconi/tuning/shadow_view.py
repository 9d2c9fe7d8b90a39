"""What a policy is told of a shadow tree, in the order in which the live tree's view tells it."""

from __future__ import annotations

from itertools import islice

from sglang.srt.mem_cache.marconi.eviction.policy import REPORTED_AT_ONCE, EvictionPolicy
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix
from sglang.srt.mem_cache.marconi.tuning.shadow_node import ShadowNode


class ShadowView:
    """Marks nodes that changed, and reports them when a request lets go of its path.

    What is left is reported before a decision. Nothing is under LRU.
    """

    def __init__(self, policy: EvictionPolicy, block_tokens: int) -> None:
        self.policy = policy
        self._block_tokens = block_tokens
        self._observed = bool(policy.pools)
        self._marked: dict[int, ShadowNode] = {}
        self._left: list[CachedPrefix] = []
        self._next_order = 0

    def removed(self, node: ShadowNode) -> None:
        """``node`` left the tree."""
        self._marked.pop(node.id, None)
        if node.prefix is not None:
            self._left.append(node.prefix)

    def mark(self, node: ShadowNode) -> None:
        if self._observed and node.parent is not None:
            self._marked[node.id] = node

    def children_changed(self, node: ShadowNode, before: int) -> None:
        if node.parent is not None and self._observed:
            self._marked[node.id] = node
            if (before > 1) != (len(node.children) > 1):
                self._mark_down_to_states(node)

    def state_came_or_went(self, node: ShadowNode) -> None:
        if self._observed:
            self._marked[node.id] = node
            self._mark_down_to_states(node)

    def _mark_down_to_states(self, node: ShadowNode) -> None:
        stack = list(node.children.values())
        while stack:
            child = stack.pop()
            self._marked[child.id] = child
            if not child.survives:
                stack.extend(child.children.values())

    def report_left(self) -> None:
        """Report to the policy what left the tree."""
        for prefix in self._left:
            self.policy.on_remove(prefix)
        self._left.clear()

    def refresh(self, now: int) -> None:
        """Report to the policy, at tick ``now``, all that changed or left."""
        self._report(now, len(self._marked))

    def report_some(self, now: int) -> None:
        """Report what left and the first few that changed."""
        self._report(now, REPORTED_AT_ONCE)

    def _report(self, now: int, most: int) -> None:
        self.report_left()
        for node in list(islice(self._marked.values(), most)):
            del self._marked[node.id]
            self._refresh_node(node, now)

    def _refresh_node(self, node: ShadowNode, now: int) -> None:
        known, is_leaf = node.prefix, node.is_evictable_leaf
        host_state, host_kv = self._on_host(node)
        if not (node.has_state or is_leaf or host_state or (host_kv and not node.children)):
            if known is not None:
                node.prefix = None
                self.policy.on_remove(known)
            return
        above = node.parent
        assert above is not None
        tokens = self._block_tokens
        segment_from = above.end * tokens
        while above.parent is not None and not above.survives and len(above.children) <= 1:
            above = above.parent
        exclusive_from = above.end * tokens
        while above.parent is not None and not above.survives:
            above = above.parent
        reuse_from = above.end * tokens
        reuse_id = above.id if above.parent is not None else None
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
                reuse_id=reuse_id,
                host_state=host_state,
                host_kv=host_kv,
            )
            self._next_order += 1
            self.policy.on_insert(node.prefix, now)
            return
        known.segment_from = segment_from
        known.exclusive_from = exclusive_from
        known.reuse_from = reuse_from
        known.reuse_id = reuse_id
        known.children = len(node.children)
        known.has_state = node.has_state
        known.is_leaf = is_leaf
        known.state_locked = node.state_locks > 0
        known.last_access = node.accessed
        known.host_state, known.host_kv = host_state, host_kv
        self.policy.on_change(known)

    def _on_host(self, node: ShadowNode) -> tuple[bool, bool]:
        """``host_state`` and ``host_kv`` of what the policy knows of ``node``."""
        return False, False
