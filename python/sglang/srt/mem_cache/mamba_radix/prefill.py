"""Cuts prefill where admission wants a state, through SGLang 0.5.23's own chunked prefill.

SGLang's match says before prefill where a prompt leaves the cached ones. A prefill that ends there
leaves a state under every strategy: ``no_buffer``, which has no other way to make one, and
``extra_buffer``, whose forward can snapshot one depth a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sglang.srt.mem_cache.mamba_radix.events import HostCache
from sglang.srt.mem_cache.marconi.admission.given_states import LastGiven
from sglang.srt.mem_cache.marconi.admission.rules import Admission, Chunk, boundaries
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

#: What happens where a cut fails.
UNCUT = "SGLang's prefill goes on without it"


@dataclass
class AdmissionRun(LastGiven):
    """What one running request did, in tokens; kept on the request.

    Attributes:
        cut_at: depth at which its prefill is being cut.
        boundaries: depths beside the branch point at which it is to leave a state.
    """

    cut_at: int | None = None
    boundaries: tuple[int, ...] | None = None


class PrefillCuts:
    """Cuts the prefills of one cache's requests. No error of it reaches the scheduler."""

    def __init__(
        self,
        cache: HostCache,
        admission: Admission,
        boundary_tokens: Sequence[Sequence[int]] = (),
    ) -> None:
        self._cache = cache
        self._admission = admission
        self._boundary_tokens = boundary_tokens

    def shape(
        self, adder: Any, req: Any, shape: Any, *, chunking: bool, align: int | None = None
    ) -> Any:
        """The prefill that SGLang selected for a new request, cut where a state is wanted.

        SGLang can have one request in mid-prefill. While there is one, another is not cut, and
        one that would be chunked waits: budget that a cut left unused must not admit it. So does
        one that could resume from a state that the present forward, or a later one of the same
        prefill, leaves for another request.

        Args:
            shape: a ``_PrefillAdmission``, or SGLang's reason not to admit the request.
            chunking: a request that was in mid-prefill before this step still is.
            align: tokens of which a chunk must be a multiple, where outputs must not depend on
                how prefill is chunked.
        """
        try:
            if not hasattr(shape, "extend_len"):
                return shape
            if self._comes_too_soon(adder, req, shape.prefix_len):
                return _not_now()
            if chunking or adder.new_chunked_req is not None:
                return _not_now() if shape.is_chunked else shape
            start = shape.prefix_len
            cut = self._cut(adder, req, start, start + shape.extend_len)
            if cut is None or (cut - start) % (align or 1):
                return shape
            return replace(shape, extend_len=cut - start, max_new_tokens=0, is_chunked=True)
        except Exception as error:
            self._cache.count_error("cutting a prefill at its branch point", error, UNCUT)
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
            self._cache.count_error("cutting a prefill at its branch point", error, UNCUT)

    def _comes_too_soon(self, adder: Any, req: Any, start: int) -> bool:
        """Whether a request before ``req`` is about to leave a state deeper on its path.

        It is in the forward that is being put together, so ``req`` waits for a forward that comes.
        """
        grid = self.grid()[0]
        tokens = req.full_untruncated_fill_ids
        for other in adder.can_run_list:
            branch = other.mamba_branching_seqlen
            stops = (run_of(other).boundaries or ()) + (() if branch is None else (branch,))
            for stop in stops:
                made = other.prefix_len < stop and other.extend_end - stop < grid
                if made and start < stop < len(tokens) and _same_path(req, other, stop):
                    return True
        return False

    def _cut(self, adder: Any, req: Any, start: int, end: int) -> int | None:
        run = run_of(req)
        run.cut_at = None
        # Without SGLang's chunked prefill nothing would go on with the rest.
        if adder.rem_chunk_tokens is None or adder.dllm_config is not None:
            return None
        grid, snapshots = self.grid()
        chunk = Chunk(
            start=start,
            end=end,
            prompt_end=len(req.full_untruncated_fill_ids),
            grid=grid,
            snapshots=snapshots,
            branch=req.mamba_branching_seqlen,
        )
        if run.boundaries is None:
            found = boundaries(req.origin_input_ids, self._boundary_tokens)
            run.boundaries = tuple(depth // grid * grid for depth in found if depth >= grid)
        run.cut_at = self._admission.cut(chunk, run.boundaries)
        return run.cut_at

    def grid(self) -> tuple[int, bool]:
        """How far apart states can lie, and whether a forward can leave one before its end."""
        if not self._cache.enable_mamba_extra_buffer:
            return 1, False
        return int(self._cache.components[ComponentType.MAMBA].mamba_checkpoint_grid), True


def run_of(owner: Any) -> AdmissionRun:
    """The record kept on a request, made at the first call."""
    run = getattr(owner, "marconi_run", None)
    if run is None:
        run = owner.marconi_run = AdmissionRun()
    return run


def _same_path(a: Any, b: Any, depth: int) -> bool:
    return (a.extra_key, a.cache_salt) == (b.extra_key, b.cache_salt) and (
        a.full_untruncated_fill_ids[:depth] == b.full_untruncated_fill_ids[:depth]
    )


def _not_now() -> Any:
    from sglang.srt.managers.schedule_policy import AddReqResult

    return AddReqResult.OTHER
