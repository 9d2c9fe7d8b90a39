"""SGLang 0.5.4's MambaRadixCache with an eviction policy's victims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sglang.srt.mem_cache.mamba_radix_cache import LRUList, MambaRadixCache, TreeNode
from sglang.srt.mem_cache.marconi.attach.accounts import UNCOUNTED, MarconiAccounts
from sglang.srt.mem_cache.marconi.attach.setup import MarconiSetup
from sglang.srt.mem_cache.marconi.insight.stats import VictimKind
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.marconi.tree import Namespace


class OfferingLRUList(LRUList):
    """Stock's list, which names the node that it is offered as the one to evict first."""

    offered: TreeNode | None = None

    def get_lru_no_lock(self) -> TreeNode | None:
        return super().get_lru_no_lock() if self.offered is None else self.offered

    def get_leaf_lru_no_lock(self) -> TreeNode | None:
        return super().get_leaf_lru_no_lock() if self.offered is None else self.offered


class MarconiRadixCache(MarconiAccounts, MambaRadixCache):
    """Stock in all but the order of its victims, which an eviction policy chooses.

    A victim is offered to stock's own ``evict`` and ``evict_mamba``, one at a time, so how a node
    leaves the tree is stock's, and so are the lists' order and the locks. Under policy 1 nothing
    is offered.
    """

    def __init__(
        self,
        req_to_token_pool: Any,
        token_to_kv_pool_allocator: Any,
        page_size: int,
        *,
        setup: MarconiSetup,
    ) -> None:
        self._serves_probe = False
        self.open_accounts(setup, at_rest="none")
        self.attach_tree(self)
        super().__init__(req_to_token_pool, token_to_kv_pool_allocator, page_size)

    def marconi_state(self) -> dict[str, object]:
        """What is configured and what it did so far, as plain JSON types."""
        return self.describe_accounts(type(self).__name__)

    # -- eviction

    def evict(self, full_num_tokens: int) -> None:
        self._evict(
            Pool.KV, full_num_tokens, super().evict, self.full_lru_list, self.full_evictable_size
        )

    def evict_mamba(self, mamba_num: int) -> None:
        self._evict(
            Pool.STATE,
            mamba_num,
            super().evict_mamba,
            self.mamba_lru_list,
            self.mamba_evictable_size,
        )

    def _evict(
        self,
        pool: Pool,
        wanted: int,
        stock: Callable[[int], None],
        lru: OfferingLRUList,
        evictable: Callable[[], int],
    ) -> None:
        """Free ``wanted`` tokens or states; fewer where no more is unlocked."""
        if wanted <= 0:
            return
        self.view.tick()
        self.start_shortage(pool)
        try:
            if pool not in self.policy.pools:
                stock(wanted)
                return
            goal = max(evictable() - wanted, 0)
            while evictable() > goal:
                before = evictable()
                lru.offered = self._victim(pool)
                stock(1)
                lru.offered = None
                if evictable() == before:
                    return
        finally:
            lru.offered = None
            self.end_shortage()

    def _victim(self, pool: Pool) -> TreeNode | None:
        """The policy's victim; ``None`` leaves this decision to LRU."""
        try:
            if not self.view.is_sound:
                raise RuntimeError(
                    "an event of the tree was lost, and the view is not built anew yet"
                )
            return self.view.victim(pool)
        except Exception as error:
            self.count_fallback(pool, error)
            return None

    # -- answers to the view and the lookups

    def node_by_id(self, node_id: int) -> TreeNode:
        return self.full_lru_list.cache[node_id]

    def holds_state(self, node: TreeNode) -> bool:
        return node.mamba_value is not None

    def state_survives(self, node: TreeNode) -> bool:
        return node.mamba_value is not None

    def state_is_locked(self, node: TreeNode) -> bool:
        return bool(node.mamba_lock_ref > 0)

    def is_evictable_leaf(self, node: TreeNode) -> bool:
        return not node.children and node.full_lock_ref == 0

    def tokens_of(self, key: Any) -> Sequence[int]:
        tokens: Sequence[int] = key.token_ids
        return tokens

    def namespace_of(self, key: Any) -> Namespace:
        return key.extra_key, None

    # -- events of the tree

    def reset(self) -> None:
        super().reset()
        self.full_lru_list = OfferingLRUList(mamba=False)
        self.mamba_lru_list = OfferingLRUList(mamba=True)
        self.forget_tree()

    def match_prefix(self, key: Any, **kwargs: Any) -> Any:
        if _is_probe(kwargs.get("req")):
            return super().match_prefix(key, **kwargs)
        self.view.tick()
        result = super().match_prefix(key, **kwargs)
        if len(key):
            node, req = result.last_device_node, kwargs.get("req")
            if node.mamba_value is not None:
                self.report(self.view.state_consumed, node)
            if req is not None:
                try:
                    self._note_match(req, key, node, len(result.device_indices))
                except Exception as error:
                    self.count_error("explaining a lookup", error, UNCOUNTED)
        return result

    def insert(self, key: Any, value: Any = None, mamba_value: Any = None) -> Any:
        if not self._serves_probe:
            self.view.tick()
        result = super().insert(key, value, mamba_value)
        if len(key):
            self.report(self._inserted)
        return result

    def _inserted(self) -> None:
        # The last thing that an insert does is to make the end of its key the most recent state.
        end = self.mamba_lru_list.head.mamba_next
        self.view.leaf_sets_updated(end.parent)
        self.state_created(end)
        self.view.leaf_sets_updated(end)

    def inc_lock_ref(self, node: TreeNode) -> None:
        super().inc_lock_ref(node)
        self.report(self.view.changed, node)

    def dec_lock_ref(self, node: TreeNode) -> None:
        super().dec_lock_ref(node)
        self.report(self.view.changed, node)
        self.request_let_go()

    def _split_node(self, key: Any, child: TreeNode, split_len: int) -> TreeNode:
        upper = super()._split_node(key, child, split_len)
        self.report(self.view.split, upper, child)
        self.report(self.view.leaf_sets_updated, upper)
        return upper

    def _tombstone_internal_node(self, node: TreeNode) -> None:
        self.report(self._leaves, node, VictimKind.STATE_ONLY)
        super()._tombstone_internal_node(node)
        self.report(self.view.state_came_or_went, node)

    def _delete_leaf(self, node: TreeNode) -> None:
        self.report(self._leaves, node, VictimKind.LEAF_WITH_STATE)
        super()._delete_leaf(node)
        self.report(self._left, node)

    def _delete_tombstone_leaf(self, node: TreeNode) -> None:
        self.report(self._leaves, node, VictimKind.LEAF_KV_ONLY)
        super()._delete_tombstone_leaf(node)
        self.report(self._left, node)

    def _leaves(self, node: TreeNode, kind: VictimKind) -> None:
        state_only = kind is VictimKind.STATE_ONLY
        self.count_victim(node, kind, kv_tokens=0 if state_only else len(node.key))
        if not state_only:
            self.prefix_deleted(node)

    def _left(self, node: TreeNode) -> None:
        self.view.removed(node)
        self.view.leaf_sets_updated(node.parent)

    # -- lookups

    def _note_match(self, req: Any, key: Any, node: TreeNode, hit: int) -> None:
        rest, last = key[hit:], node
        while len(rest):
            child = last.children.get(self.get_child_key_fn(rest))
            if child is None:
                break
            # The match split the tree where it ended: what it shared is whole nodes.
            last, rest = child, rest[len(child.key) :]
        self.note_lookup(req, key, hit=hit, kv_alive=len(key) - len(rest), last=last)
        self.note_return(req)

    def cache_finished_req(self, req: Any) -> None:
        with self._serving(req):
            super().cache_finished_req(req)

    def cache_unfinished_req(self, req: Any, chunked: bool = False) -> None:
        with self._serving(req):
            super().cache_unfinished_req(req, chunked)

    @contextmanager
    def _serving(self, req: Any) -> Iterator[None]:
        """Count a request, unless it is a health check, whose insert ticks no clock either."""
        self._serves_probe = _is_probe(req)
        if not self._serves_probe:
            self.count_request(req)
        try:
            yield
        finally:
            self._serves_probe = False


def _is_probe(req: Any) -> bool:
    """Whether a request is a health check that SGLang sends to an idle server itself."""
    return str(getattr(req, "rid", "")).startswith("HEALTH_CHECK")
