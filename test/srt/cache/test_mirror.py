"""A mirror has the shape of the tree that it is told of, whatever the page and the namespace."""

from __future__ import annotations

import itertools
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.mem_cache.mamba_radix.rust_core.mirror import Segment, TreeMirror
from sglang.srt.mem_cache.marconi.tree import NO_NAMESPACE, Namespace


class SetOfPrefixes:
    """The tree to mirror: nodes are (namespace, tokens from the root) with an id, and no more."""

    def __init__(self, page: int) -> None:
        self.page = page
        self.ids: dict[tuple[Namespace, tuple[int, ...]], int] = {}
        self._fresh = itertools.count(1)

    def insert(self, namespace: Namespace, tokens: tuple[int, ...]) -> list[tuple[int, int, int]]:
        """Cut what shares whole pages with ``tokens`` where they part; the path to their end."""
        cut = max(
            (self._shared(tokens, other) for ns, other in self.ids if ns == namespace), default=0
        )
        for end in (cut, len(tokens)):
            if end and (namespace, tokens[:end]) not in self.ids:
                self.ids[namespace, tokens[:end]] = next(self._fresh)
        ends = [n for n in range(1, len(tokens) + 1) if (namespace, tokens[:n]) in self.ids]
        starts = [0, *ends[:-1]]
        return [
            (self.ids[namespace, tokens[:end]], start, end)
            for start, end in zip(starts, ends, strict=True)
        ]

    def leaves(self) -> list[tuple[Namespace, tuple[int, ...]]]:
        return [
            (ns, tokens)
            for ns, tokens in self.ids
            if not any(
                ns == other_ns and other[: len(tokens)] == tokens and other != tokens
                for other_ns, other in self.ids
            )
        ]

    def _shared(self, one: tuple[int, ...], other: tuple[int, ...]) -> int:
        same = sum(
            1
            for _ in itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(one, other, strict=False)
            )
        )
        return same - same % self.page


@settings(deadline=None, max_examples=150)
@given(
    page=st.sampled_from([1, 2]),
    life=st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from([(None, None), ("", None), ("a\0b", None), ("a", "b")]),
                st.lists(st.integers(0, 1), min_size=1, max_size=6),
            ),
            st.integers(0, 20),
        ),
        max_size=30,
    ),
)
def test_a_mirror_has_the_nodes_of_the_tree(page, life):
    tree, mirror = SetOfPrefixes(page), TreeMirror(page)
    for step in life:
        if isinstance(step, int):
            leaves = tree.leaves()
            if leaves:
                leaf = leaves[step % len(leaves)]
                mirror.remove(mirror.node_by_id(tree.ids.pop(leaf)))
        else:
            namespace, pages = step
            tokens = tuple(token for token in pages for _ in range(page))
            path = tree.insert(namespace, tokens)
            learnt = mirror.learn(path, Segment(array("q", tokens), namespace))
            assert {fresh.id for fresh, _ in learnt} <= {id for id, *_ in path}
            assert not mirror.learn(path, Segment(array("q", tokens), namespace)), "known by now"
        assert shape(mirror) == {(ns, tokens, id) for (ns, tokens), id in tree.ids.items()}


def shape(mirror: TreeMirror) -> set[tuple[str, tuple[int, ...], int]]:
    found = set()
    stack = [(child, ()) for child in mirror.root_node.children.values()]
    while stack:
        node, above = stack.pop()
        assert mirror.find(node.id) is node
        tokens = (*above, *mirror.tokens_of(node.key))
        found.add((mirror.namespace_of(node.key), tokens, node.id))
        assert all(child.parent is node for child in node.children.values())
        stack.extend((child, tokens) for child in node.children.values())
    assert len(found) == len(mirror.nodes)
    return found


def test_states_stand_in_the_order_of_their_use():
    mirror = TreeMirror(1)
    for id in (1, 2, 3):
        ((node, lower),) = mirror.learn([(id, 0, 2)], Segment(array("q", [id, 0]), NO_NAMESPACE))
        assert lower is None and mirror.is_evictable_leaf(node)
        mirror.put_state(node)
    first = mirror.node_by_id(1)
    mirror.use_state(first)
    assert [node.id for node in mirror.states.values()] == [2, 3, 1]
    first.state_locks += 1
    assert mirror.state_is_locked(first) and not mirror.is_evictable_leaf(first)
    mirror.drop_state(mirror.node_by_id(2))
    mirror.remove(mirror.node_by_id(3))
    assert [node.id for node in mirror.states.values()] == [1] and set(mirror.nodes) == {1, 2}
    assert mirror.node_by_id(99) is mirror.root_node, "the owner's roots are unknown to it"


def test_a_node_that_left_unnoticed_is_forgotten_and_said():
    mirror = TreeMirror(1)
    key = Segment(array("q", [1, 2, 3, 4]), NO_NAMESPACE)
    mirror.learn([(1, 0, 2), (2, 2, 4)], key)
    with pytest.raises(LookupError, match="nobody was told"):
        mirror.learn([(3, 0, 3), (4, 3, 4)], key)
    assert set(mirror.nodes) == {3, 4}
    assert [child.id for child in mirror.root_node.children.values()] == [3]
