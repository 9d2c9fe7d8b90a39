"""Judicious admission on SGLang 0.5.23: a request's states between are taken out of the tree again.

An insert cannot give the tree KV without a state, so a state that is not to stay leaves once the
request's next one lies below it. Until then it is there for a request that is retracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.mem_cache.mamba_radix.events import HostCache
from sglang.srt.mem_cache.mamba_radix.prefill import PrefillCuts, run_of
from sglang.srt.mem_cache.marconi.admission.given_states import GivenStates
from sglang.srt.mem_cache.marconi.admission.rules import Admission, lies_at
from sglang.srt.mem_cache.unified_cache.components.mamba import MambaComponent


class MambaRadixAdmission:
    """Applies an admission to the requests of one cache. No error of it reaches the scheduler."""

    def __init__(
        self,
        cache: HostCache,
        admission: Admission,
        boundary_tokens: Sequence[Sequence[int]] = (),
    ) -> None:
        self.cuts = PrefillCuts(cache, admission, boundary_tokens)
        self.given = GivenStates(admission)
        self._cache = cache
        self.taking_back = False

    # -- after an insert

    def inserted(self, req: Any, insert_result: Any, insert_params: Any, *, finished: bool) -> None:
        """A request gave the tree a state."""
        try:
            branch = req.mamba_branching_seqlen
            stops = () if branch is None else (branch,)
            self.follow(
                req,
                insert_result.last_device_node,
                len(insert_params.key),
                created=not insert_result.mamba_exist,
                stops=stops + (run_of(req).boundaries or ()),
                grid=self.cuts.grid()[0],
                prompt_end=len(req.origin_input_ids) if finished else None,
            )
        except Exception as error:
            self._cache.count_error("taking a state back", error, "the state stays")

    def follow(
        self,
        owner: Any,
        node_id: int,
        depth: int,
        *,
        created: bool,
        stops: Sequence[int] = (),
        grid: int = 1,
        prompt_end: int | None = None,
    ) -> int | None:
        """Judge the state before the one that ``owner`` just gave to the tree.

        Args:
            owner: the request; its record is kept on it.
            node_id: the node that holds the new state.
            depth: tokens from the root to it.
            created: the state is the request's; another request's lay there otherwise.
            stops: depths at which the admission wanted a state.
            grid: as :attr:`Chunk.grid`.
            prompt_end: length of the prompt, if the new state is the last that the request gives.

        Returns:
            The depth of the state that was taken back, if it was.
        """
        run = run_of(owner)
        if run.cut_at is not None:
            self._cache.stats.prefill_cuts += 1
            run.cut_at = None
        former = self.given.give(
            run, node_id, depth, created=created, at_stop=lies_at(depth, stops, grid)
        )
        if former is None:
            return None
        ends_prompt = prompt_end is not None and prompt_end - grid < former.depth <= prompt_end
        core = self._cache.tree_core
        node = core.find(former.node)
        children = 0 if node is None else core.children_beyond(node)
        if not self.given.takes_back(former, children, node_id if ends_prompt else None):
            return None
        self._take_back(node)
        return former.depth

    def _take_back(self, node: Any) -> None:
        self.taking_back = True
        try:
            self._cache.tree_core.take_back_state(node)
        finally:
            self.taking_back = False
        self._cache.state_taken_back(node)


class GivingMambaComponent(MambaComponent):
    """Recurrent states, of which the admission hears when a request gave one to the tree."""

    def cleanup_after_caching_req(
        self, req: Any, is_finished: bool, insert_result: Any = None, insert_params: Any = None
    ) -> None:
        super().cleanup_after_caching_req(req, is_finished, insert_result, insert_params)
        if insert_result is not None and self.cache.admission is not None:
            self.cache.admission.inserted(req, insert_result, insert_params, finished=is_finished)
