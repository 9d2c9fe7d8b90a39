"""Where each request's prompt stood in the tree, and why tokens seen before must be prefilled."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy, ReturnObserver
from sglang.srt.mem_cache.marconi.insight.ghosts import (
    BLOCK_TOKENS,
    Ghosts,
    PrefixDigest,
    extend,
    root_digest,
)
from sglang.srt.mem_cache.marconi.insight.stats import Lookup
from sglang.srt.mem_cache.marconi.tree import TreeReader

#: Deleted prefixes that may have yet to be hashed.
MOST_DELETED = 32


class PathReader(Protocol):
    """What is asked of the view that the policy has of the tree."""

    now: int
    policy: EvictionPolicy

    def depth(self, node: Any) -> int:
        """Tokens from the root to the end of ``node``."""

    def report_left(self) -> None:
        """Report to the policy what left the tree."""


class Lookups:
    """Explains the lookup of every request, once, as of its last match before prefill.

    A match costs a walk over the nodes between the state it found and the KV that still lives.
    Where it leaves that along a deleted prefix, the tokens of the path are hashed too, once a node.
    A deleted prefix is only noted, and hashed in :meth:`hash_deleted` or before a question.
    """

    def __init__(self, view: PathReader) -> None:
        self._view = view
        self._tree: TreeReader | None = None
        self._ghosts = Ghosts(on_forgotten=self._forgotten)
        self._deleted: deque[tuple[Any, bool]] = deque()
        self._had_state: set[int] = set()
        self._digests: dict[int, PrefixDigest] = {}

    def attach(self, tree: TreeReader) -> None:
        self._tree = tree

    def clear(self) -> None:
        """The tree was emptied on purpose: what it held is not lost to eviction."""
        self._ghosts.clear()
        self._deleted.clear()
        self._had_state.clear()
        self._digests.clear()

    def state_created(self, node: Any) -> None:
        """A state was put at the end of ``node``."""
        self._had_state.add(node.id)

    def state_taken_back(self, node: Any) -> None:
        """The state at the end of ``node`` was not to stay."""
        self._had_state.discard(node.id)

    def prefix_deleted(self, node: Any) -> None:
        """``node`` is about to leave the tree."""
        self._deleted.append((node, node.id in self._had_state))
        self._had_state.discard(node.id)
        if len(self._deleted) > MOST_DELETED:
            self._remember(*self._deleted.popleft())

    def hash_deleted(self) -> None:
        """Remember the prefixes that were deleted since."""
        while self._deleted:
            self._remember(*self._deleted.popleft())

    def note(self, req: Any, key: Any, *, hit: int, kv_alive: int, last: Any) -> None:
        """Keep on the request where its prompt stands in a match.

        Args:
            req: the request, of which nothing but ``origin_input_ids`` is read.
            key: what was looked up.
            hit: tokens from the root to the state that the request resumes from.
            kv_alive: tokens of ``key`` whose KV is cached, at least ``hit``.
            last: the node where they end.
        """
        if getattr(req, "marconi_counted", False):
            return
        deepest_state, lost = self._deepest_lost_state(last, hit)
        deepest_kv = kv_alive
        state_kv_alive = True
        if kv_alive < len(key) and self._may_lead_on(key, kv_alive):
            alive = self._digest(last, key)
            if alive.length == kv_alive:
                ghost = self._ghosts.look_up(alive, self._reader().tokens_of(key[kv_alive:]))
                deepest_kv = max(deepest_kv, ghost.kv_depth)
                if ghost.state_depth > deepest_state:
                    deepest_state, state_kv_alive = ghost.state_depth, False
                    lost = ghost.state_owner
        req.marconi_lost = lost
        req.marconi_lookup = Lookup(
            len(req.origin_input_ids), hit, deepest_state, deepest_kv, state_kv_alive
        )

    def returned(self, req: Any) -> None:
        """A request is admitted: tell the policy of the evicted state at which it would resume."""
        lost, policy = getattr(req, "marconi_lost", None), self._view.policy
        if lost is not None and isinstance(policy, ReturnObserver):
            # It must have heard that the prefix left.
            self._view.report_left()
            policy.on_return(lost, self._view.now)

    def _forgotten(self, owner: int) -> None:
        if isinstance(self._view.policy, ReturnObserver):
            self._view.policy.on_forgotten(owner)

    @staticmethod
    def note_held(req: Any, tokens: int) -> None:
        """A request resumes at ``tokens`` tokens that its own session kept: nothing was evicted."""
        if not getattr(req, "marconi_counted", False):
            req.marconi_lookup = Lookup(len(req.origin_input_ids), tokens, tokens, tokens, True)

    @staticmethod
    def take(req: Any) -> Lookup | None:
        """The last lookup of a request that is being prefilled; ``None`` from the second call."""
        lookup: Lookup | None = getattr(req, "marconi_lookup", None)
        if lookup is None or getattr(req, "marconi_counted", False):
            return None
        req.marconi_counted = True
        return lookup

    def _reader(self) -> TreeReader:
        assert self._tree is not None
        return self._tree

    def _remember(self, node: Any, had_state: bool) -> None:
        # It left the tree, but what leads to it from the root is still what it was.
        parent, tokens = self._digest(node.parent, node.key), self._reader().tokens_of(node.key)
        self._ghosts.add(parent, tokens, had_state, node.id)
        self._digests.pop(node.id, None)

    def _may_lead_on(self, key: Any, kv_alive: int) -> bool:
        self.hash_deleted()
        if not len(self._ghosts):
            return False
        number = kv_alive // BLOCK_TOKENS
        start = number * BLOCK_TOKENS
        end = min(start + BLOCK_TOKENS, len(key))
        # A key that is cut short copies all that it is asked for; one of pairs has a token more.
        block = self._reader().tokens_of(key[start:end])[: end - start]
        return self._ghosts.may_lead_on(number, block)

    def _deepest_lost_state(self, node: Any, hit: int) -> tuple[int, int | None]:
        """The deepest evicted state on the path to ``node``.

        Returns:
            Its depth and its node's id; ``hit`` and ``None`` if none is deeper.
        """
        while node.parent is not None:
            depth = self._view.depth(node)
            if depth <= hit:
                break
            if node.id in self._had_state and not self._reader().state_survives(node):
                return depth, node.id
            node = node.parent
        return hit, None

    def _digest(self, node: Any, key: Any) -> PrefixDigest:
        """Of the path from the root to the end of ``node``, in the namespace of ``key``."""
        known = self._digests.get(node.id)
        if known is not None:
            return known
        chain = []
        while node.parent is not None and node.id not in self._digests:
            chain.append(node)
            node = node.parent
        if node.parent is None:
            digest = root_digest(self._reader().namespace_of(key))
        else:
            digest = self._digests[node.id]
        for node in reversed(chain):
            digest, _ = extend(digest, self._reader().tokens_of(node.key))
            self._digests[node.id] = digest
        return digest
