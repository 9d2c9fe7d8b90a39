"""The three caches behind one interface: blocks with LRU, radix with LRU, radix with scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from paper.blocks import Block, BlockTree
from paper.cost import PaperModel
from paper.leaf_queue import LeafQueue
from paper.modes import Fixes
from paper.records import Eviction, Lookup
from paper.score_table import Choice, ScoreTable
from paper.sequences import path_hash
from paper.tree import Node, RadixTree


class Store(Protocol):
    """A cache without a clock of its own; all times are ticks, all sequences encoded."""

    @property
    def nodes(self) -> int:
        """Nodes without the root; each holds one state."""

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV is held."""

    @property
    def stale_parents(self) -> int:
        """Nodes that, as published, point to a parent no longer in the tree (B2)."""

    def lookup(self, query: bytes, now: int) -> Lookup:
        """Find the cached part of a sequence and stamp what the policy says was used."""

    def need(self, tokens: int, inner: Lookup) -> int | float:
        """Bytes the insert of a sequence of this many tokens asks for."""

    def evict(self, wanted: int | float, now: int) -> list[Eviction]:
        """Evict until the policy believes that ``wanted`` bytes are free, or nothing is left."""

    def store(self, query: bytes, now: int) -> None:
        """Hold a sequence, whether it fits or not."""

    def radix_nodes(self) -> Iterator[Node]:
        """The radix nodes in pre-order; none for blocks."""


class _RadixStore:
    """What SGLang+ and Marconi share: the radix tree and the estimate of an insert's need."""

    def __init__(self, model: PaperModel, tree: RadixTree, details: bool) -> None:
        self._model = model
        self._tree = tree
        self._details = details

    @property
    def nodes(self) -> int:
        return self._tree.nodes

    @property
    def kv_tokens(self) -> int:
        return self._tree.kv_tokens

    @property
    def stale_parents(self) -> int:
        return self._tree.stale_parents

    def need(self, tokens: int, inner: Lookup) -> int:
        states = 2 if inner.branches_off else 1
        kv = self._model.kv_bytes_per_token * (tokens - inner.raw)
        return states * self._model.state_bytes + kv

    def radix_nodes(self) -> Iterator[Node]:
        return self._tree.preorder()


class LruRadixStore(_RadixStore):
    """SGLang+ (V1): leaves go in LRU order, inner nodes after all of their children."""

    def __init__(self, model: PaperModel, *, details: bool) -> None:
        self._queue: LeafQueue[Node] = LeafQueue(lambda node: model.node_bytes(node.own_tokens))
        super().__init__(model, RadixTree(self), details)

    def changed(self, node: Node) -> None:
        self._queue.offer(node)

    def removed(self, node: Node) -> None:
        """The queue finds out by itself."""

    def lookup(self, query: bytes, now: int) -> Lookup:
        lookup, visited, _ = self._tree.walk(query)
        for node in visited:
            node.last_access = now
        return lookup

    def evict(self, wanted: int | float, now: int) -> list[Eviction]:
        evictions = []
        for node in self._queue.plan(self._tree.root, wanted):
            evictions.append(_leaf_eviction(node, self._model, self._details))
            self._tree.remove_leaf(node)
        return evictions

    def store(self, query: bytes, now: int) -> None:
        for node in self._tree.store(query, now):
            node.last_access = now


class ScoredRadixStore(_RadixStore):
    """Marconi (V2, V3): the lowest sum of recency and weighted FLOP efficiency goes first."""

    def __init__(self, model: PaperModel, fixes: Fixes, alpha: float, *, details: bool) -> None:
        self.alpha = alpha
        self._fixes = fixes
        self._table = ScoreTable(lambda start, end: model.efficiency(start, end, fixes))
        super().__init__(model, RadixTree(self._table, reparent=fixes.reparent), details)

    def lookup(self, query: bytes, now: int) -> Lookup:
        lookup, _, deepest = self._tree.walk(query)
        if deepest is not None:
            deepest.last_access = now
            self._table.touched(deepest)
        return lookup

    def evict(self, wanted: int | float, now: int) -> list[Eviction]:
        evictions: list[Eviction] = []
        claimed = 0
        while claimed < wanted:
            choice = self._table.lowest(now, self.alpha, with_margin=self._details)
            if choice is None:
                break
            claimed += self._claim(choice.node)
            evictions.append(self._record(choice))
            if choice.node.children:
                self._tree.merge_into_child(choice.node)
            else:
                self._tree.remove_leaf(choice.node)
        return evictions

    def store(self, query: bytes, now: int) -> None:
        self._tree.store(query, now)

    def _claim(self, victim: Node) -> int:
        if victim.children:
            return self._model.state_bytes
        # The last node in pre-order has no child, so it is the last candidate too.
        counted = victim if self._fixes.bytes_of_victim else self._tree.last_leaf()
        return self._model.node_bytes(counted.own_tokens)

    def _record(self, choice: Choice) -> Eviction:
        node = choice.node
        merge = bool(node.children)
        return Eviction(
            kind="merge" if merge else "leaf",
            own_tokens=node.own_tokens,
            path_tokens=node.end,
            last_access=node.last_access,
            freed_bytes=self._model.node_bytes(0 if merge else node.own_tokens),
            path_hash=path_hash(node.path()) if self._details else None,
            candidates=choice.candidates,
            score=choice.score,
            margin=choice.margin,
        )


class BlockStore:
    """vLLM+: a state for every block, LRU over leaf blocks (specification 8)."""

    stale_parents = 0

    def __init__(self, model: PaperModel, block_tokens: int, *, details: bool) -> None:
        self._model = model
        self._block_tokens = block_tokens
        self._details = details
        self._tree = BlockTree(block_tokens, self._changed)
        self._queue: LeafQueue[Block] = LeafQueue(lambda block: model.node_bytes(block.own_tokens))

    @property
    def nodes(self) -> int:
        return self._tree.nodes

    @property
    def kv_tokens(self) -> int:
        return self._tree.kv_tokens

    def lookup(self, query: bytes, now: int) -> Lookup:
        return self._tree.lookup(query, now)

    def need(self, tokens: int, inner: Lookup) -> float:
        extra = tokens - self._block_tokens * inner.accessed
        states = extra / self._block_tokens * self._model.state_bytes
        return states + self._model.kv_bytes_per_token * extra

    def evict(self, wanted: int | float, now: int) -> list[Eviction]:
        evictions = []
        for block in self._queue.plan(self._tree.root, wanted):
            evictions.append(_leaf_eviction(block, self._model, self._details))
            self._tree.remove_leaf(block)
        return evictions

    def store(self, query: bytes, now: int) -> None:
        self._tree.store(query, now)

    def radix_nodes(self) -> Iterator[Node]:
        return iter(())

    def _changed(self, block: Block) -> None:
        self._queue.offer(block)


def _leaf_eviction(node: Node | Block, model: PaperModel, details: bool) -> Eviction:
    own = node.own_tokens
    return Eviction(
        kind="leaf",
        own_tokens=own,
        path_tokens=node.end,
        last_access=node.last_access,
        freed_bytes=model.node_bytes(own),
        path_hash=path_hash(node.path()) if details else None,
    )
