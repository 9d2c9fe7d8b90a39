"""Tells a policy what was said of what follows a request, when the request lets go of its path.

SGLang hands ``custom_params`` on to the scheduler untouched, from /generate, the OpenAI endpoints
and ``Engine``; without a custom logit processor nothing of SGLang reads an entry of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.mem_cache.mamba_radix.probes import is_probe
from sglang.srt.mem_cache.marconi.eviction.policy import HintObserver
from sglang.srt.mem_cache.marconi.hints import Hint, read_hint

if TYPE_CHECKING:
    from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache


class ClientHints:
    """Follows the requests and sessions of one cache."""

    def __init__(self, cache: MambaRadixCache) -> None:
        self._cache = cache
        # Of each open session, the node at which its last request ended.
        self._tails: dict[str, int] = {}

    def ended(self, req: Any) -> Hint | None:
        """A request gave its memory back.

        Returns:
            What was said of what follows; ``None`` also for one that was retracted and goes on.
        """
        if not req.finished() or is_probe(req):
            return None
        counts = self._cache.stats.hints
        reading = read_hint(getattr(getattr(req, "sampling_params", None), "custom_params", None))
        counts["malformed"] += reading.malformed
        # Who hung up may try again, whatever was said of an answer that was to come.
        hint = Hint.ABORTED if isinstance(req.finished_reason, FINISH_ABORT) else reading.hint
        node = req.last_node
        if hint is not None:
            counts[hint.value] += 1
            self._tell(node, hint)
        if req.session is not None and not req.session.streaming and node is not None:
            self._tails[str(req.session.session_id)] = node
        return hint

    def closed(self, session_id: str) -> None:
        """A session was closed, and its memory given back."""
        node = self._tails.pop(session_id, None)
        if node is not None:
            self._cache.stats.hints[Hint.CLOSED.value] += 1
            self._tell(node, Hint.CLOSED)

    def clear(self) -> None:
        """The tree was emptied."""
        self._tails.clear()

    def _tell(self, node: int | None, hint: Hint) -> None:
        policy = self._cache.policy
        if node is not None and isinstance(policy, HintObserver):
            policy.on_hint(node, hint)
