"""Attention of a draft model that writes several tokens, one after another, ahead of the target.

SGLang gives each step a backend of its own and the batch the lengths before the first of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from torch.nn.functional import pad

Tensor = torch.Tensor


class DraftStepBackend(TorchNativeAttnBackend):  # type: ignore[misc, unused-ignore]
    """Decodes one step of the drafts: each row also sees the drafts of its branch before it."""

    table: Tensor
    rows: Tensor
    lengths: Tensor

    def _run_sdpa_forward_decode(
        self,
        query: Tensor,
        output: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        req_to_token: Tensor,
        req_pool_indices: Tensor,
        seq_lens: Tensor,
        *more: Any,
        **options: Any,
    ) -> Any:
        # Attention data parallelism fills batches up after their metadata are known.
        filled = len(query) - len(self.lengths)
        rows, lengths = pad(self.rows, (0, filled)), pad(self.lengths, (0, filled), value=1)
        read = (k_cache, v_cache, self.table, rows, lengths)
        return super()._run_sdpa_forward_decode(query, output, *read, *more, **options)


class DraftBackends:
    """The backends of all steps but the last, whose token nobody looks beyond.

    Attributes:
        attn_backends: one a step.
    """

    def __init__(self, model_runner: Any, topk: int, speculative_num_steps: int) -> None:
        self.topk = topk
        self.steps = speculative_num_steps
        self.attn_backends = [DraftStepBackend(model_runner) for _ in range(self.steps - 1)]

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Tell each step which slots it reads."""
        pool = self.attn_backends[0].req_to_token_pool.req_to_token
        table, rows = branches(
            pool, forward_batch.req_pool_indices, forward_batch.seq_lens, self.topk, self.steps
        )
        lengths = forward_batch.seq_lens.repeat_interleave(self.topk)
        for step, backend in enumerate(self.attn_backends):
            backend.init_forward_metadata(forward_batch)
            backend.table, backend.rows = table, rows
            backend.lengths = lengths + step + 1


def branches(
    req_to_token: Tensor, requests: Tensor, lengths: Tensor, topk: int, steps: int
) -> tuple[Tensor, Tensor]:
    """A table of slots with a row for each branch, and the row of each of B * topk branches.

    The slots of request b's branch i lie behind its lengths[b] tokens, from i * steps on; in its
    row of the table they lie directly behind them. req_to_token [requests, longest]; requests and
    lengths [B].
    """
    if topk == 1:
        return req_to_token, requests
    own = torch.arange(topk).view(1, topk, 1) * steps + torch.arange(steps)
    at = lengths.long().view(-1, 1, 1) + own
    longest = int(lengths.max()) + topk * steps
    held = req_to_token[requests.long(), :longest]
    slots = held.gather(1, at.flatten(1)).view(-1, steps)
    table = held.repeat_interleave(topk, 0)
    behind = lengths.long().repeat_interleave(topk).view(-1, 1) + torch.arange(steps)
    return table.scatter(1, behind, slots), torch.arange(len(table))


def serves_torch_native(original: Callable[..., Any]) -> Callable[..., Any]:
    """SGLang's choice of a draft's backends, with those of `torch_native` among them."""

    def _create_backend(
        self: Any,
        backend_name: str,
        backend_map: dict[str, Callable[[], tuple[str, Any]]],
        error_template: str,
        stamps_children: bool = False,
    ) -> Any:
        def create() -> tuple[str, Any]:
            runner = self.draft_model_runner
            # Only the backends of the steps have children.
            if stamps_children:
                return "torch_native", DraftBackends(runner, self.topk, self.speculative_num_steps)
            return "torch_native", TorchNativeAttnBackend(runner)

        known = {**backend_map, "torch_native": create}
        return original(self, backend_name, known, error_template, stamps_children)

    return _create_backend
