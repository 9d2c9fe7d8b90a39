"""Where each request's prompt stood in the tree, and why tokens seen before must be prefilled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.mamba_radix_view import MambaRadixView, state_survives
from sglang.srt.mem_cache.marconi.ghosts import Ghosts, PrefixDigest, extend, root_digest
from sglang.srt.mem_cache.marconi.policy import ReturnObserver
from sglang.srt.mem_cache.marconi.stats import Lookup

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import (
        UnifiedTreeCore,
        UnifiedTreeNode,
    )


class MambaRadixLookups:
    """Explains the lookup of every request, once, as of its last match before prefill.

    A match costs a walk over the nodes between the state it found and the KV that still lives, and,
    once anything was deleted, the hashing of the tokens beyond that lead along deleted prefixes.
    """

    def __init__(self, view: MambaRadixView) -> None:
        self._view = view
        self._ghosts = Ghosts()
        self._had_state: set[int] = set()
        self._digests: dict[int, PrefixDigest] = {}

    def clear(self) -> None:
        """The tree was emptied on purpose: what it held is not lost to eviction."""
        self._ghosts.clear()
        self._had_state.clear()
        self._digests.clear()

    def state_created(self, node: UnifiedTreeNode) -> None:
        """A state was put at the end of ``node``."""
        self._had_state.add(node.id)

    def prefix_deleted(self, node: UnifiedTreeNode) -> None:
        """``node`` is about to leave the tree."""
        self._ghosts.add(
            self._digest(node.parent, node.key),
            node.key.raw_token_ids(),
            node.id in self._had_state,
            node.id,
        )
        self._had_state.discard(node.id)
        self._digests.pop(node.id, None)

    def note(self, core: UnifiedTreeCore, params: Any, result: Any) -> None:
        """Keep on the request where its prompt stands in a match.

        Args:
            params: the match's ``MatchPrefixParams``, with a request.
            result: its ``MatchResult``.
        """
        req = params.req
        if getattr(req, "marconi_counted", False):
            return
        # With a host tier, KV between the last state on the device and the state that is loaded
        # back can lie on either side: only the node says how deep the request resumes.
        hit = self._view.depth(core.node_by_id(result.best_match_node))
        kv_alive = max(result.full_kv_hit_length, hit)
        last = core.root_node
        if result.last_visited_node_id is not None:
            last = core.node_by_id(result.last_visited_node_id)
        deepest_state, lost = self._deepest_lost_state(last, hit)
        deepest_kv = kv_alive
        state_kv_alive = True
        if len(self._ghosts) and kv_alive < len(params.key):
            alive = self._digest(last, params.key)
            if alive.length == kv_alive:
                ghost = self._ghosts.look_up(alive, params.key.raw_token_ids()[kv_alive:])
                deepest_kv = max(deepest_kv, ghost.kv_depth)
                if ghost.state_depth > deepest_state:
                    deepest_state, state_kv_alive = ghost.state_depth, False
                    lost = ghost.state_owner
        policy = self._view.policy
        if lost is not None and isinstance(policy, ReturnObserver):
            policy.on_return(lost, self._view.now)
        req.marconi_lookup = Lookup(
            len(req.origin_input_ids), hit, deepest_state, deepest_kv, state_kv_alive
        )

    @staticmethod
    def take(req: Any) -> Lookup | None:
        """The last lookup of a request that is being prefilled; ``None`` from the second call."""
        lookup: Lookup | None = getattr(req, "marconi_lookup", None)
        if lookup is None or getattr(req, "marconi_counted", False):
            return None
        req.marconi_counted = True
        return lookup

    def _deepest_lost_state(self, node: UnifiedTreeNode, hit: int) -> tuple[int, int | None]:
        """The deepest evicted state on the path to ``node``.

        Returns:
            Its depth and its node's id; ``hit`` and ``None`` if none is deeper.
        """
        while node.parent is not None:
            depth = self._view.depth(node)
            if depth <= hit:
                break
            if node.id in self._had_state and not state_survives(node):
                return depth, node.id
            node = node.parent
        return hit, None

    def _digest(self, node: UnifiedTreeNode, key: Any) -> PrefixDigest:
        """Of the path from the root to the end of ``node``, in the namespace of ``key``."""
        chain = []
        while node.parent is not None and node.id not in self._digests:
            chain.append(node)
            node = node.parent
        if node.parent is None:
            digest = root_digest(f"{key.extra_key or ''}\0{key.cache_salt or ''}")
        else:
            digest = self._digests[node.id]
        for node in reversed(chain):
            digest, _ = extend(digest, node.key.raw_token_ids())
            self._digests[node.id] = digest
        return digest
