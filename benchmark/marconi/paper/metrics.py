"""Totals over requests, added up as they come so that a long trace needs no memory."""

from __future__ import annotations

from paper.cost import PaperModel
from paper.records import RequestRecord, Summary


class Metrics:
    """Adds records to a ``Summary`` (specification 9)."""

    def __init__(self, model: PaperModel, capacity_bytes: int | float) -> None:
        self.totals = Summary()
        self._model = model
        self._capacity = capacity_bytes

    def add(self, record: RequestRecord) -> None:
        """Count one request in."""
        self._add_reuse(record)
        self._add_walks(record)
        if record.evict_called:
            self._add_evictions(record)
        totals = self.totals
        totals.max_tree_bytes = max(totals.max_tree_bytes, record.tree_bytes)
        totals.requests_over_capacity += record.tree_bytes > self._capacity

    def _add_reuse(self, record: RequestRecord) -> None:
        totals, model, matched = self.totals, self._model, record.matched
        totals.requests += 1
        totals.hits += matched > 0
        totals.input_tokens += record.input_tokens
        totals.matched_tokens += matched
        totals.full_input_matches += 0 < record.input_tokens == matched
        totals.flops_saved_ssm += model.ssm_flops(matched)
        totals.flops_saved_attn += model.attn_flops(matched)
        totals.flops_saved_mlp += model.mlp_flops(matched)
        totals.prefill_flops += model.prefill_flops(record.input_tokens)

    def _add_walks(self, record: RequestRecord) -> None:
        totals, lookup, inserted = self.totals, record.lookup, record.inserted
        totals.phantom_matches += lookup.reusable != lookup.true_reusable
        totals.phantom_raws += lookup.raw != lookup.true_raw
        totals.branch_offs += inserted.branches_off
        totals.branch_offs_in_output += inserted.branches_off and inserted.raw > record.input_tokens

    def _add_evictions(self, record: RequestRecord) -> None:
        totals, evictions, freed = self.totals, record.evictions, record.bytes_freed
        totals.evict_calls += 1
        if totals.first_evict_request is None:
            totals.first_evict_request = record.index + 1
        totals.under_evict_calls += freed < record.bytes_to_remove
        if evictions:
            totals.over_evict_calls += freed - evictions[-1].freed_bytes >= record.bytes_to_remove
        leaves = sum(victim.kind == "leaf" for victim in evictions)
        totals.evicted_leaves += leaves
        totals.evicted_merges += len(evictions) - leaves
        totals.zero_margins += sum(victim.margin == 0 for victim in evictions)
