"""The heap of leaves against a list that is searched."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.mem_cache.marconi.tuning.leaf_heap import LeafHeap
from sglang.srt.mem_cache.marconi.tuning.shadow_node import ShadowNode

NODES = 6
STEPS = st.lists(st.tuples(st.sampled_from(("touch", "turn", "ask")), st.integers(0, NODES - 1)))


@given(STEPS)
def test_the_first_is_the_leaf_that_was_touched_least_recently(steps):
    nodes = [ShadowNode(id, None, array("Q"), 0) for id in range(NODES)]
    leaves: set[int] = set()
    heap = LeafHeap[ShadowNode](lambda node: node.id in leaves)
    for now, (step, which) in enumerate(steps, start=1):
        node = nodes[which]
        if step == "touch":
            node.touched = now
        elif step == "turn":
            leaves ^= {which}
            heap.offer(node)
        else:
            wanted = min((nodes[id] for id in leaves), key=_recency, default=None)
            assert heap.first() is wanted
            assert heap.first() is wanted, "who was asked for stays the first"
    assert heap.first() is min((nodes[id] for id in leaves), key=_recency, default=None)


def _recency(node: ShadowNode) -> tuple[int, int]:
    return node.touched, node.id
