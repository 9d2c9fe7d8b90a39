"""Judicious admission on SGLang 0.5.23: a request's states between are taken out of the tree again.

An insert cannot give the tree KV without a state, so a state that is not to stay leaves once the
request's next one lies below it. Until then it is there for a request that is retracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.mamba_radix.events import HostCache
from sglang.srt.mem_cache.mamba_radix.prefill import PrefillCuts, run_of
from sglang.srt.mem_cache.marconi.admission.given_states import GivenStates
from sglang.srt.mem_cache.marconi.admission.rules import Admission, lies_at
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.components.base import EvictLayer
from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import BaseEvictionResult

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode


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
            self._cache.count_error("taking a state back", error)

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
        node = self._cache.tree_core._node_arena.get(former.node)
        children = 0 if node is None else self._children_beyond(node)
        if not self.given.takes_back(former, children, node_id if ends_prompt else None):
            return None
        self._take_back(node)
        return former.depth

    @staticmethod
    def _children_beyond(node: UnifiedTreeNode) -> int:
        """How many prefixes go on from the state of ``node``; 0 where it cannot leave."""
        state = node.component_data[ComponentType.MAMBA]
        # A lock is another request's or a backup's; a leaf cannot do without its state.
        if state.value is None or state.lock_ref or state.session_ref:
            return 0
        return len(node.children)

    def _take_back(self, node: UnifiedTreeNode) -> None:
        core = self._cache.tree_core
        component = self._cache.components[ComponentType.MAMBA]
        result = BaseEvictionResult()
        self.taking_back = True
        try:
            for step in (core._evict_component_and_detach_lru, core._cascade_evict):
                step(
                    node,
                    component,
                    target=EvictLayer.DEVICE,
                    tracker=result.tracker,
                    device_frees=result.device_frees,
                    host_frees=result.host_frees,
                    cache_actions=result.cache_actions,
                )
        finally:
            self.taking_back = False
            self._cache._apply_eviction_result(result)
        self._cache.state_taken_back(node)
