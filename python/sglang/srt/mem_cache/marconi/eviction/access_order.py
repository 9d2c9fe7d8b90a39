"""Entries in the order of their last access, kept as plain numbers side by side."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection


class AccessOrder:
    """Entries by last access and, among equals, by order of appearance: a column for each.

    Tuples in a list would lie anywhere in memory. In a cache of 10^5 prefixes a search meets most
    of them outside all of a processor's caches; numbers in an array lie side by side, 24 bytes an
    entry.

    ``place`` is O(log n). ``insert`` and ``delete`` move the entries behind, 24 bytes each: what
    was used last has none behind.

    Attributes:
        stamps: logical tick of each entry's last access, ascending.
        orders: its order of appearance, ascending among equal stamps.
        ids: its id.
    """

    __slots__ = ("ids", "orders", "stamps")

    def __init__(self) -> None:
        self.stamps = array("q")
        self.orders = array("q")
        self.ids = array("q")

    def __len__(self) -> int:
        return len(self.stamps)

    def place(self, stamp: int, order: int) -> int:
        """Where an entry stands, or would stand."""
        stamps = self.stamps
        if not stamps or stamp > stamps[-1]:
            return len(stamps)
        at = bisect_left(stamps, stamp)
        if stamps[at] == stamp and self.orders[at] < order:
            equals = bisect_right(stamps, stamp, at + 1)
            at = bisect_left(self.orders, order, at + 1, equals)
        return at

    def insert(self, at: int, stamp: int, order: int, id: int) -> None:
        self.stamps.insert(at, stamp)
        self.orders.insert(at, order)
        self.ids.insert(at, id)

    def delete(self, at: int) -> None:
        del self.stamps[at], self.orders[at], self.ids[at]

    def replace(self, at: int, end: int, entries: Collection[tuple[int, int, int]]) -> None:
        """Put entries, each a stamp, an order and an id, in the place of those up to ``end``."""
        self.stamps[at:end] = array("q", [stamp for stamp, _, _ in entries])
        self.orders[at:end] = array("q", [order for _, order, _ in entries])
        self.ids[at:end] = array("q", [id for _, _, id in entries])

    def _check(self) -> None:
        keys = list(zip(self.stamps, self.orders, strict=True))
        assert keys == sorted(set(keys)), "entries are out of order"
        assert len(self.ids) == len(keys)
