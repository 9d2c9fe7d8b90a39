"""Entries by last access against a sorted list of tuples."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.mem_cache.marconi.eviction.access_order import AccessOrder

Entry = tuple[int, int, int]

# Few stamps, so that many entries share one; an order of appearance belongs to one entry.
histories = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30), st.booleans()), max_size=80)
entries = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(-1, 2**62)))


def shown(order: AccessOrder) -> list[Entry]:
    order._check()
    return list(zip(order.stamps, order.orders, order.ids, strict=True))


@given(histories)
def test_entries_stand_where_sorting_puts_them(history):
    order, twin = AccessOrder(), []
    for stamp, appeared, comes in history:
        entry = (stamp, appeared, 7 * appeared)
        at = order.place(stamp, appeared)
        assert at == bisect_left(twin, (stamp, appeared))
        if at < len(twin) and twin[at] == entry:
            if not comes:
                order.delete(at)
                del twin[at]
        elif comes:
            order.insert(at, *entry)
            twin.insert(at, entry)
        assert shown(order) == twin and len(order) == len(twin)


@given(entries, entries, st.integers(0, 20), st.integers(0, 20))
def test_a_run_of_entries_is_replaced_by_others(before, others, start, length):
    before.sort()
    order = AccessOrder()
    order.replace(0, 0, before)
    order.replace(start, start + length, others)
    before[start : start + length] = others
    assert list(zip(order.stamps, order.orders, order.ids, strict=True)) == before
