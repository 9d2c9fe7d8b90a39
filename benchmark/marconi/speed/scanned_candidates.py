"""The reference of ``marconi/candidates.py``: the same candidates, scored by a scan."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

from sglang.srt.mem_cache.marconi.eviction.utility import utilities
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool


class ScannedCandidates:
    """Candidates of one pool (``None``: of both), scored by a scan over them at each decision.

    ``put`` and ``discard`` are O(1), ``lowest`` is O(n). What a prefix saves per byte is computed
    once at ``put``, not at each decision.
    """

    def __init__(self, pool: Pool | None, efficiency: Callable[[CachedPrefix], float]) -> None:
        self._pool = pool
        self._efficiency = efficiency
        self._members: dict[int, tuple[CachedPrefix, float]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[CachedPrefix]:
        return (prefix for prefix, _ in self._members.values())

    def put(self, prefix: CachedPrefix) -> None:
        """Add ``prefix``, take note of its change, or drop it if the pool may not evict it."""
        if prefix.may_leave(self._pool):
            self._members[prefix.id] = (prefix, self._efficiency(prefix))
        else:
            self._members.pop(prefix.id, None)

    def discard(self, prefix: CachedPrefix) -> None:
        self._members.pop(prefix.id, None)

    def lowest(
        self, pool: Pool | None, now: int, eff_weight: float, excluding: Container[int] = ()
    ) -> CachedPrefix | None:
        """The candidate of lowest utility at tick ``now``, ``None`` if there is none.

        Prefixes with several children are considered only when no other is left: their state
        serves all that is below. Equal scores go to the one that appeared first.
        """
        assert pool is self._pool
        eligible = [entry for key, entry in self._members.items() if key not in excluding]
        narrow = [entry for entry in eligible if entry[0].children <= 1]
        left = narrow or eligible
        if not left:
            return None
        scores = utilities(
            [prefix.last_access for prefix, _ in left],
            [efficiency for _, efficiency in left],
            now,
            eff_weight,
        )
        best = min(range(len(left)), key=lambda i: (scores[i], left[i][0].order))
        return left[best][0]

    def _check(self) -> None:
        for key, (prefix, efficiency) in self._members.items():
            assert key == prefix.id
            assert prefix.may_leave(self._pool), f"prefix {key} may not leave {self._pool}"
            assert efficiency == self._efficiency(prefix), f"prefix {key} has a stale efficiency"
