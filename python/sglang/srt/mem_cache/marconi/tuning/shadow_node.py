"""A node of a radix tree without data, and how far a sequence runs along it.

A sequence is an array of chained block hashes: the hash at index i stands for all blocks up to and
including i, so that two sequences share their first k blocks exactly when they agree at k - 1. A
node therefore matches in O(1), and part of one in O(log blocks).
"""

from __future__ import annotations

from array import array

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix


class ShadowNode:
    """Blocks ``start..end-1`` of a sequence, below ``parent``.

    Attributes:
        hashes: chained hashes of these blocks.
        last: the last of ``hashes``, 0 at the root.
        locks: running requests whose path leads through it.
        state_locks: running requests that stand at its end.
        touched: logical time of the last walk through it, by which KV leaves age.
        accessed: tick at which its state was created or consumed.
        prefix: what the policy knows of it.
    """

    __slots__ = (
        *("id", "parent", "children", "hashes", "start", "end", "last", "has_state"),
        *("locks", "state_locks", "touched", "accessed", "prefix"),
    )

    def __init__(self, id: int, parent: ShadowNode | None, hashes: array[int], start: int) -> None:
        self.id = id
        self.parent = parent
        self.children: dict[int, ShadowNode] = {}
        self.hashes = hashes
        self.start = start
        self.end = start + len(hashes)
        self.last = hashes[-1] if hashes else 0
        self.has_state = False
        self.locks = 0
        self.state_locks = 0
        self.touched = 0
        self.accessed = 0
        self.prefix: CachedPrefix | None = None

    @property
    def key(self) -> array[int]:
        """Its blocks, as a ``TreeReader`` shows them."""
        return self.hashes

    @property
    def survives(self) -> bool:
        """A request can resume at its end."""
        return self.has_state

    @property
    def is_evictable_leaf(self) -> bool:
        return not self.children and not self.locks and self.parent is not None


def shared_depth(node: ShadowNode, hashes: array[int], limit: int) -> int:
    """Depth to which ``node`` and ``hashes`` agree, below ``limit``; at least one block does."""
    low, high = node.start + 1, limit
    while low < high:
        middle = (low + high + 1) // 2
        if node.hashes[middle - 1 - node.start] == hashes[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
