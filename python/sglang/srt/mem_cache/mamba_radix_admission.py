"""Judicious admission on SGLang 0.5.23: prefill cut at branch points, old states taken back.

SGLang's match says before prefill where a prompt leaves the cached ones. Prefill is cut there
through SGLang's own chunking, so every strategy leaves a state: ``no_buffer``, which has no other
way to make one, and ``extra_buffer``, whose forward can snapshot one depth a request. An insert
cannot give the tree KV without a state, so a state that is not to stay is taken out again once the
request's next one lies below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.marconi.admission import Admission, Chunk, OwnState, lies_at
from sglang.srt.mem_cache.marconi.follow_ups import FollowUps
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.components.base import EvictLayer
from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import BaseEvictionResult

if TYPE_CHECKING:
    from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode


@dataclass
class _Run:
    """What one running request did; kept on the request.

    Attributes:
        node: id of the node that holds its deepest own state, ``None`` where there is none.
        depth: tokens from the root to that state.
        at_stop: that state is meant to stay.
        cut_at: depth at which its prefill is being cut.
    """

    node: int | None = None
    depth: int = 0
    at_stop: bool = False
    cut_at: int | None = None


class MambaRadixAdmission:
    """Applies an admission to the requests of one cache. No error of it reaches the scheduler."""

    def __init__(self, cache: MambaRadixCache, admission: Admission) -> None:
        self._cache = cache
        self._admission = admission
        self._not_reused: set[int] = set()
        self._follow_ups = FollowUps(admission)
        self.taking_back = False

    # -- events of the tree

    def clear(self) -> None:
        """The tree was emptied."""
        self._not_reused.clear()
        self._follow_ups.clear()

    def state_looked_up(self, node: UnifiedTreeNode) -> None:
        """Some request found the state of ``node``."""
        self._not_reused.discard(node.id)
        self._follow_ups.seen(node.id)

    def state_created(self, node: UnifiedTreeNode) -> None:
        """A state was put at the end of ``node``, or put there again."""
        self._follow_ups.seen(node.id)

    def split(self, lower: UnifiedTreeNode) -> None:
        """A prompt left the path to ``lower`` between its two last nodes."""
        self._follow_ups.parted(lower.id)

    def deleted(self, node: UnifiedTreeNode) -> None:
        """``node`` left the tree."""
        self._follow_ups.forget(node.id)

    def state_left(self, node: UnifiedTreeNode) -> None:
        """The state of ``node`` left the device."""
        self._not_reused.discard(node.id)

    # -- before prefill

    def shape(self, adder: Any, req: Any, shape: Any, *, chunking: bool) -> Any:
        """The prefill that SGLang selected for a new request, cut where a state is wanted.

        SGLang can have one request in mid-prefill. While there is one, another is not cut, and
        one that would be chunked waits: budget that a cut left unused must not admit it.

        Args:
            shape: a ``_PrefillAdmission``, or SGLang's reason not to admit the request.
            chunking: a request that was in mid-prefill before this step still is.
        """
        try:
            if not hasattr(shape, "extend_len"):
                return shape
            if chunking or adder.new_chunked_req is not None:
                return _not_now() if shape.is_chunked else shape
            start = shape.prefix_len
            cut = self._cut(adder, req, start, start + shape.extend_len)
            if cut is None:
                return shape
            return replace(shape, extend_len=cut - start, max_new_tokens=0, is_chunked=True)
        except Exception as error:
            self._cache.count_error("cutting a prefill at its branch point", error)
            return shape

    def limit(self, adder: Any, req: Any) -> None:
        """Make the next chunk of a request in mid-prefill end where a state is wanted."""
        try:
            tokens = [adder.rem_chunk_tokens, adder.chunked_req_limit]
            start, end = req.prefix_len, len(req.full_untruncated_fill_ids)
            end = min([end, *(start + limit for limit in tokens if limit is not None)])
            cut = self._cut(adder, req, start, end)
            if cut is not None:
                adder.chunked_req_limit = cut - start
        except Exception as error:
            self._cache.count_error("cutting a prefill at its branch point", error)

    def _cut(self, adder: Any, req: Any, start: int, end: int) -> int | None:
        run = _run_of(req)
        run.cut_at = None
        # Without SGLang's chunked prefill nothing would go on with the rest.
        if adder.rem_chunk_tokens is None or adder.dllm_config is not None:
            return None
        grid, snapshots = self._grid()
        chunk = Chunk(
            start=start,
            end=end,
            prompt_end=len(req.full_untruncated_fill_ids),
            grid=grid,
            snapshots=snapshots,
            branch=req.mamba_branching_seqlen,
        )
        run.cut_at = self._admission.cut(chunk)
        return run.cut_at

    def _grid(self) -> tuple[int, bool]:
        """How far apart states can lie, and whether a forward can leave one before its end."""
        if not self._cache.enable_mamba_extra_buffer:
            return 1, False
        return int(self._cache.components[ComponentType.MAMBA].mamba_checkpoint_grid), True

    # -- after an insert

    def inserted(self, req: Any, insert_result: Any, insert_params: Any, *, finished: bool) -> None:
        """A request gave the tree a state."""
        try:
            branch = req.mamba_branching_seqlen
            self.follow(
                req,
                insert_result.last_device_node,
                len(insert_params.key),
                created=not insert_result.mamba_exist,
                stops=() if branch is None else (branch,),
                grid=self._grid()[0],
                finished=finished,
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
        finished: bool = False,
    ) -> int | None:
        """Judge the state before the one that ``owner`` just gave to the tree.

        Args:
            owner: the request; its record is kept on it.
            node_id: the node that holds the new state.
            depth: tokens from the root to it.
            created: the state is the request's; another request's lay there otherwise.
            stops: depths at which the admission wanted a state.
            grid: as :attr:`Chunk.grid`.
            finished: the new state is the last that the request gives.

        Returns:
            The depth of the state that was taken back, if it was.
        """
        run = _run_of(owner)
        if run.cut_at is not None:
            self._cache.stats.prefill_cuts += 1
            run.cut_at = None
        former = replace(run)
        if created:
            run.node, run.depth = node_id, depth
            run.at_stop = lies_at(depth, stops, grid)
            self._not_reused.add(node_id)
        else:
            run.node = None
        if former.node is None or former.node == node_id:
            return None
        return former.depth if self._judge(former, last=node_id if finished else None) else None

    def _judge(self, former: _Run, *, last: int | None) -> bool:
        """Whether the state of ``former`` was taken back.

        Args:
            last: the node of the request's last state, if that is what follows ``former``.
        """
        core = self._cache.tree_core
        node = core._node_arena.get(former.node)
        reused = former.node not in self._not_reused
        self._not_reused.discard(former.node)
        if node is None:
            return False
        state = node.component_data[ComponentType.MAMBA]
        # A lock is another request's or a backup's; a leaf cannot do without its state.
        if state.value is None or state.lock_ref or state.session_ref or not node.children:
            return False
        own = OwnState(
            former.depth, former.at_stop, reused, len(node.children), prompt_end=last is not None
        )
        if last is not None and not own.shared:
            self._follow_ups.watch(node.id, last)
        if not self._admission.takes_back(own):
            return False
        self._take_back(node)
        return True

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


def _run_of(owner: Any) -> _Run:
    run = getattr(owner, "marconi_run", None)
    if run is None:
        run = owner.marconi_run = _Run()
    return run


def _not_now() -> Any:
    from sglang.srt.managers.schedule_policy import AddReqResult

    return AddReqResult.OTHER
