"""A copy of the shape of a radix tree whose owner shows its nodes by id only."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

from sglang.srt.mem_cache.marconi.tree import NO_NAMESPACE, Namespace


class Segment:
    """Tokens, and the namespace that they lie in: a node's key, or what a lookup names."""

    __slots__ = ("namespace", "tokens")

    def __init__(self, tokens: array[int], namespace: Namespace) -> None:
        self.tokens = tokens
        self.namespace = namespace

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Segment:
        return Segment(self.tokens[part], self.namespace)


class MirrorNode:
    """One node of the tree.

    Attributes:
        key: the tokens between the parent's end and this node's own; empty at the root.
        has_state: a state lies at the node's end. Which slot holds it only the owner knows: slots
            are numbers on the device, and reading one would stall the host.
        kv_locks: locks that hold the KV of the path to this very node.
        state_locks: locks that hold this node's state.
        last_access_time: for an order of one's own; the mirror leaves it alone.
    """

    __slots__ = (
        "children",
        "has_state",
        "id",
        "key",
        "kv_locks",
        "last_access_time",
        "parent",
        "state_locks",
    )

    def __init__(self, id: int, parent: MirrorNode | None, key: Segment) -> None:
        self.id = id
        self.parent = parent
        self.key = key
        self.children: dict[object, MirrorNode] = {}
        self.has_state = False
        self.kv_locks = 0
        self.state_locks = 0
        self.last_access_time = 0.0


class TreeMirror:
    """Nodes, states and locks as the owner's results tell of them; answers as a ``TreeReader``.

    All KV is taken to lie on the device. A lock of a node's KV holds its whole path, but only at
    the node itself does that decide whether it is an evictable leaf: above there are children.

    A node costs about 600 bytes and 8 bytes a token.

    Args:
        page: tokens a page of the owner's tree; nodes begin and end at whole pages.
    """

    node_class = MirrorNode

    def __init__(self, page: int) -> None:
        self._page = page
        self.clear()

    def clear(self) -> None:
        self.root_node = self.node_class(-1, None, Segment(array("q"), NO_NAMESPACE))
        self.nodes: dict[int, MirrorNode] = {}
        #: Nodes with a state, the least recently used first.
        self.states: OrderedDict[int, MirrorNode] = OrderedDict()

    # -- what the owner told

    def learn(
        self, path: Sequence[tuple[int, int, int]], lookup: Segment
    ) -> list[tuple[MirrorNode, MirrorNode | None]]:
        """Take note of the new nodes at the end of a path.

        Args:
            path: id, start and end of each node from the root on, in tokens.
            lookup: what begins with the tokens of the path.

        Returns:
            Each new node, the upper first, with the node below it that it was split off, if any.

        Raises:
            LookupError: where the new nodes are, others were taken to be; these are forgotten.
        """
        known = self._known(path)
        node = self.nodes[path[known - 1][0]] if known else self.root_node
        learnt = []
        unnoticed = False
        for id, start, end in path[known:]:
            if id in self.nodes:
                node = self.nodes[id]
                continue
            key = lookup[start:end]
            branch = self._branch(node, key)
            fresh = self.node_class(id, node, key)
            lower = node.children.get(branch)
            if lower is not None and len(lower.key) <= len(key):
                # What is split off is shorter than what it is split off.
                self._forget_all(lower)
                lower, unnoticed = None, True
            if lower is not None:
                lower.parent = fresh
                lower.key = lower.key[len(key) :]
                fresh.children[self._branch(fresh, lower.key)] = lower
            node.children[branch] = fresh
            self.nodes[id] = node = fresh
            learnt.append((fresh, lower))
        if unnoticed:
            raise LookupError("nodes left the tree and nobody was told")
        return learnt

    def _known(self, path: Sequence[tuple[int, int, int]]) -> int:
        """Nodes at the beginning of ``path`` above which there is nothing new."""
        known = len(path)
        while known and path[known - 1][0] not in self.nodes:
            known -= 1
        return known

    def put_state(self, node: MirrorNode) -> None:
        """A state was put at the end of ``node``."""
        node.has_state = True
        self.states[node.id] = node
        self.states.move_to_end(node.id)

    def use_state(self, node: MirrorNode) -> None:
        """The state of ``node`` is now the most recently used."""
        self.states.move_to_end(node.id)

    def drop_state(self, node: MirrorNode) -> None:
        del self.states[node.id]
        node.has_state = False

    def remove(self, node: MirrorNode) -> None:
        """``node``, which has no children, left the tree with its state."""
        assert node.parent is not None and not node.children
        if node.has_state:
            self.drop_state(node)
        del node.parent.children[self._branch(node.parent, node.key)]
        del self.nodes[node.id]

    def forget(self, node: MirrorNode) -> None:
        """``node`` is not in the tree, whatever was told of it; its key may be wrong too."""
        self.nodes.pop(node.id, None)
        self.states.pop(node.id, None)
        if node.parent is not None:
            siblings = node.parent.children
            for branch in [branch for branch, other in siblings.items() if other is node]:
                del siblings[branch]

    def _forget_all(self, top: MirrorNode) -> None:
        stack = [top]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            self.forget(node)

    # -- answers

    def node_by_id(self, node_id: int) -> MirrorNode:
        """The node of this id; the root for an id of none, for an owner may have several roots."""
        return self.nodes.get(node_id, self.root_node)

    def find(self, node_id: int) -> MirrorNode | None:
        return self.nodes.get(node_id)

    def holds_state(self, node: MirrorNode) -> bool:
        return node.has_state

    def state_survives(self, node: MirrorNode) -> bool:
        return node.has_state

    def state_is_locked(self, node: MirrorNode) -> bool:
        return node.state_locks > 0

    def is_evictable_leaf(self, node: MirrorNode) -> bool:
        return not (node.children or node.kv_locks or node.state_locks or node.parent is None)

    def device_tokens(self, node: MirrorNode) -> int:
        """Tokens of the node's own whose KV lies on the device."""
        return len(node.key)

    @staticmethod
    def tokens_of(key: Segment) -> Sequence[int]:
        return key.tokens

    @staticmethod
    def namespace_of(key: Segment) -> Namespace:
        return key.namespace

    def _branch(self, parent: MirrorNode, key: Segment) -> object:
        first = key.tokens[0] if self._page == 1 else tuple(key.tokens[: self._page])
        return first if parent.parent is not None else (key.namespace, first)
