"""The radix tree: nodes of one segment and one state, with running sums instead of scans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from paper.records import Lookup
from paper.sequences import TOKEN_BYTES, shared_bytes, token_count


class Node:
    """An edge segment with the state at its end (specification 2).

    ``start`` and ``end`` are tokens from the root; ``end`` never changes while the node lives.
    ``order`` ranks a node among its siblings as the published child map does.
    """

    __slots__ = (
        "children",
        "end",
        "last_access",
        "next_order",
        "order",
        "parent",
        "parent_is_stale",
        "queued",
        "segment",
        "slot",
        "start",
    )

    def __init__(
        self, parent: Node | None, segment: bytes, start: int, last_access: int, order: int
    ) -> None:
        self.parent = parent
        self.segment = segment
        self.start = start
        self.end = start + token_count(segment)
        self.last_access = last_access
        self.order = order
        self.next_order = 0
        self.children: dict[bytes, Node] = {}
        self.parent_is_stale = False
        self.slot = -1
        self.queued = False

    @property
    def own_tokens(self) -> int:
        """Tokens of the segment."""
        return self.end - self.start

    @property
    def key(self) -> bytes:
        """The first token, under which the parent keeps this node."""
        return self.segment[:TOKEN_BYTES]

    def path(self) -> bytes:
        """Every token from the root to the end of this node, encoded."""
        parts, node = [], self
        while node.parent is not None:
            parts.append(node.segment)
            node = node.parent
        return b"".join(reversed(parts))

    def rank(self) -> tuple[int, ...]:
        """Sorts as pre-order does: the sibling ranks from the root down."""
        ranks, node = [], self
        while node.parent is not None:
            ranks.append(node.order)
            node = node.parent
        return tuple(reversed(ranks))


class TreeListener(Protocol):
    """Keeps an index of victims in step with the tree."""

    def changed(self, node: Node) -> None:
        """The node is new, or its segment or number of children changed. Never the root."""

    def removed(self, node: Node) -> None:
        """The node has left the tree."""


class RadixTree:
    """A token-level radix tree in the published simulator's child order.

    Knows neither policy nor clock: whoever calls it passes the time and does the stamping of
    nodes that it only finds.
    """

    def __init__(self, listener: TreeListener, *, reparent: bool = True) -> None:
        self.root = Node(None, b"", 0, 0, 0)
        self.nodes = 0
        self.kv_tokens = 0
        self.stale_parents = 0
        self._listener = listener
        self._reparent = reparent

    def walk(self, query: bytes) -> tuple[Lookup, list[Node], Node | None]:
        """What of ``query`` is cached, the nodes visited (root first), the deepest full match.

        After a partial match the walk goes on below it, as published (defect B5).
        """
        node, at, end, reusable = self.root, 0, len(query), 0
        visited, deepest = [node], None
        honest: tuple[int, int] | None = None
        while at < end:
            child = node.children.get(query[at : at + TOKEN_BYTES])
            if child is None:
                break
            visited.append(child)
            segment = child.segment
            if query.startswith(segment, at):
                at += len(segment)
                reusable += len(segment)
                deepest = child
            else:
                at += shared_bytes(query, at, segment)
                if honest is None:
                    honest = (reusable, at)
            node = child
        true_reusable, true_raw = (reusable, at) if honest is None else honest
        lookup = Lookup(
            reusable=reusable // TOKEN_BYTES,
            raw=at // TOKEN_BYTES,
            true_reusable=true_reusable // TOKEN_BYTES,
            true_raw=true_raw // TOKEN_BYTES,
            accessed=len(visited),
        )
        return lookup, visited, deepest

    def store(self, query: bytes, now: int) -> list[Node]:
        """Add ``query``; new nodes are stamped ``now``.

        Returns the nodes descended through, the root first. A node at which the query ends is not
        descended through (specification 4).
        """
        node, at, end = self.root, 0, len(query)
        through = [node]
        while at < end:
            child = node.children.get(query[at : at + TOKEN_BYTES])
            if child is None:
                self._add_leaf(node, query[at:], now)
                break
            if query.startswith(child.segment, at):
                at += len(child.segment)
                if at < end:
                    node = child
                    through.append(node)
                continue
            shared = shared_bytes(query, at, child.segment)
            upper = self._split(node, child, shared, now)
            if at + shared < end:
                self._add_leaf(upper, query[at + shared :], now)
            self._listener.changed(upper)
            break
        return through

    def remove_leaf(self, node: Node) -> None:
        """Take a node without children out, with its state and the KV of its segment."""
        parent = _parent_of(node)
        del parent.children[node.key]
        self._forget(node)
        self.kv_tokens -= node.own_tokens
        if parent.parent is not None:
            self._listener.changed(parent)

    def merge_into_child(self, node: Node) -> Node:
        """Drop the state of a node with one child; the child takes its tokens and its place.

        The merged node keeps the later of both stamps (specification 5).
        """
        parent = _parent_of(node)
        (child,) = node.children.values()
        parent.children[node.key] = child
        child.segment = node.segment + child.segment
        child.start = node.start
        child.parent, child.order = parent, node.order
        child.last_access = max(node.last_access, child.last_access)
        self._mark_stale(child, node.parent_is_stale)
        if not self._reparent:
            for grandchild in child.children.values():
                self._mark_stale(grandchild, True)
        self._forget(node)
        self._listener.changed(child)
        return child

    def last_leaf(self) -> Node:
        """The last node in pre-order."""
        node = self.root
        while node.children:
            node = next(reversed(node.children.values()))
        return node

    def preorder(self) -> Iterator[Node]:
        """All nodes but the root, parents first, children in map order."""
        stack = list(reversed(self.root.children.values()))
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children.values()))

    def _add_leaf(self, parent: Node, segment: bytes, now: int) -> None:
        leaf = Node(parent, segment, parent.end, now, parent.next_order)
        parent.next_order += 1
        parent.children[leaf.key] = leaf
        self.nodes += 1
        self.kv_tokens += leaf.own_tokens
        self._listener.changed(leaf)
        if parent.parent is not None:
            self._listener.changed(parent)

    def _split(self, parent: Node, child: Node, shared: int, now: int) -> Node:
        upper = Node(parent, child.segment[:shared], child.start, now, child.order)
        parent.children[upper.key] = upper
        child.segment = child.segment[shared:]
        child.start = upper.end
        child.parent, child.order = upper, 0
        self._mark_stale(child, False)
        upper.children[child.key] = child
        upper.next_order = 1
        self.nodes += 1
        self._listener.changed(child)
        return upper

    def _forget(self, node: Node) -> None:
        self._mark_stale(node, False)
        node.parent = None
        self.nodes -= 1
        self._listener.removed(node)

    def _mark_stale(self, node: Node, stale: bool) -> None:
        self.stale_parents += stale - node.parent_is_stale
        node.parent_is_stale = stale


def _parent_of(node: Node) -> Node:
    if node.parent is None:
        raise ValueError("the root, or a node that has left the tree, cannot be evicted")
    return node.parent
