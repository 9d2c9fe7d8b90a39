"""Policies that weigh all candidates of a pool against each other at each decision."""

from __future__ import annotations

from collections.abc import Container
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

Floats = npt.NDArray[np.float64]


class CandidateTable:
    """Candidates of one pool as columns of numbers, one row a prefix; rows have no order.

    ``put`` and ``discard`` are O(1); ``lowest`` is O(n) in NumPy.
    """

    def __init__(self, columns: int) -> None:
        self._prefixes: list[CachedPrefix] = []
        self._row: dict[int, int] = {}
        self._order = np.zeros(64, np.int64)
        self._columns = np.zeros((columns, 64))

    def __len__(self) -> int:
        return len(self._prefixes)

    def put(self, prefix: CachedPrefix, values: tuple[float, ...]) -> None:
        """Enter ``prefix``, or its new numbers."""
        row = self._row.get(prefix.id)
        if row is None:
            row = self._row[prefix.id] = len(self._prefixes)
            self._prefixes.append(prefix)
            if row == len(self._order):
                self._order = np.concatenate([self._order, np.zeros_like(self._order)])
                self._columns = np.hstack([self._columns, np.zeros_like(self._columns)])
        self._order[row] = prefix.order
        self._columns[:, row] = values

    def discard(self, prefix: CachedPrefix) -> None:
        row = self._row.pop(prefix.id, None)
        if row is None:
            return
        last = self._prefixes.pop()
        if last.id != prefix.id:
            self._prefixes[row] = last
            self._row[last.id] = row
            self._order[row] = self._order[len(self._prefixes)]
            self._columns[:, row] = self._columns[:, len(self._prefixes)]

    def eligible(self, excluding: Container[int]) -> npt.NDArray[np.intp]:
        """Rows of the candidates that may be chosen."""
        if not excluding:
            return np.arange(len(self))
        rows = [row for row, prefix in enumerate(self._prefixes) if prefix.id not in excluding]
        return np.array(rows, np.intp)

    def columns(self, rows: npt.NDArray[np.intp]) -> Floats:
        """Shape (columns, rows)."""
        return self._columns[:, rows]

    def lowest(self, rows: npt.NDArray[np.intp], scores: Floats) -> CachedPrefix:
        """Whose score is lowest among ``rows``, which are not empty; ties by order."""
        ties = rows[scores == scores.min()]
        return self._prefixes[int(ties[np.argmin(self._order[ties])])]


class ScoredPolicy:
    """Evicts the candidate of lowest score; a subclass says what a candidate is scored by.

    Like the paper's, it takes prefixes with several children only when no other is left: their
    state serves all that is below.
    """

    #: Numbers kept of each candidate.
    width: ClassVar[int]

    def __init__(self, pools: frozenset[Pool]) -> None:
        self.pools = pools
        self._tables = {pool: CandidateTable(1 + self.width) for pool in Pool if pool in pools}

    def values(self, prefix: CachedPrefix, pool: Pool) -> tuple[float, ...]:
        """The numbers of a prefix, ``width`` of them."""
        raise NotImplementedError

    def scores(self, values: Floats, now: int) -> Floats:
        """One score a candidate from ``values`` of shape (width, candidates); lowest goes."""
        raise NotImplementedError

    def on_insert(self, prefix: CachedPrefix, now: int) -> None:
        self.on_change(prefix)

    def on_hit(self, prefix: CachedPrefix, now: int) -> None:
        self.on_change(prefix)

    def on_change(self, prefix: CachedPrefix) -> None:
        for pool, table in self._tables.items():
            if prefix.may_leave(pool):
                table.put(prefix, (float(prefix.children <= 1), *self.values(prefix, pool)))
            else:
                table.discard(prefix)

    def on_remove(self, prefix: CachedPrefix) -> None:
        for table in self._tables.values():
            table.discard(prefix)

    def victim(self, pool: Pool, now: int, excluding: Container[int] = ()) -> CachedPrefix | None:
        table = self._tables.get(pool)
        if table is None:
            return None
        rows = table.eligible(excluding)
        narrow = rows[table.columns(rows)[0] == 1]
        rows = narrow if len(narrow) else rows
        if not len(rows):
            return None
        return table.lowest(rows, self.scores(table.columns(rows)[1:], now))


def min_max(values: Floats) -> Floats:
    """Scaled to [0, 1]; 1 where all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.ones_like(values)


def ranks(values: Floats) -> Floats:
    """The share of the other values that is lower, in [0, 1]; 1 where all are equal."""
    if values.min() == values.max():
        return np.ones_like(values)
    return np.searchsorted(np.sort(values), values) / (len(values) - 1)
