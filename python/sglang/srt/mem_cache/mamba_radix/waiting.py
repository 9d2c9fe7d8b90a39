"""Tells a policy at which prefixes the requests that wait would resume."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.mamba_radix.probes import is_probe
from sglang.srt.mem_cache.marconi.eviction.policy import (
    MOST_WAITING,
    REFRESH_PASSES,
    QueueObserver,
)
from sglang.srt.mem_cache.radix_cache import RadixKey

if TYPE_CHECKING:
    from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache

#: No node has this id.
_UNKNOWN = -1


class WaitingRequests:
    """Follows the scheduler's queue, pass by pass, in the order of service.

    SGLang has looked all of them up where that order needs it. Where not, each is looked up when it
    comes, again when what it would resume at was evicted, and all in one pass of
    ``REFRESH_PASSES``; these looks are no uses.
    """

    def __init__(self, cache: MambaRadixCache) -> None:
        self._cache = cache
        self._passes = 0

    def note(self, queue: Sequence[Any], *, matched: bool) -> None:
        """A scheduling pass begins, with ``queue`` in the order of service.

        Args:
            matched: SGLang has just looked all of them up.
        """
        cache = self._cache
        policy = cache.policy
        if not isinstance(policy, QueueObserver) or cache.disable:
            return
        refresh = self._passes % REFRESH_PASSES == 0
        self._passes += 1
        resumed = [
            None if self._is_apart(req) else self._resumes_at(req, matched, refresh)
            for req in islice(queue, MOST_WAITING)
        ]
        # It must have heard of what left and came.
        cache.view.refresh()
        policy.on_queue(resumed, cache.view.now)

    @staticmethod
    def _is_apart(req: Any) -> bool:
        """Probes are no requests, and a session may hold its KV and state outside the tree."""
        return req.session is not None or is_probe(req)

    def _resumes_at(self, req: Any, matched: bool, refresh: bool) -> int | None:
        if matched:
            node: int | None = req.best_match_node
            return node
        known: int | None = getattr(req, "marconi_resumes", _UNKNOWN)
        gone = known is not None and not self._cache.view.knows_state(known)
        if refresh or gone:
            known = req.marconi_resumes = self._look_up(req)
        return known

    def _look_up(self, req: Any) -> int | None:
        """Id of the node whose state it would resume at; ``None`` for none."""
        tokens = req.origin_input_ids + req.output_ids
        key = RadixKey(
            tokens,
            # The last token of a prompt is always computed.
            limit=len(tokens) - 1,
            extra_key=req.extra_key,
            cache_salt=req.cache_salt,
        )
        found = self._cache.match_prefix(MatchPrefixParams(key=key))
        node: int = found.best_match_node
        return node if self._cache.tree.holds_state(self._cache.tree.node_by_id(node)) else None
