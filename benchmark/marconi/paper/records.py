"""What one request did to the cache, and what all of them add up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EvictionKind = Literal["leaf", "merge"]
"""``leaf``: a node without children went. ``merge``: only the state of a node with one child."""


@dataclass(slots=True)
class Lookup:
    """One walk down the tree. Lengths in tokens (specification 3)."""

    reusable: int
    """Tokens of the fully matched segments."""
    raw: int
    """Tokens that agree, counting those in the middle of an edge."""
    true_reusable: int
    """``reusable`` if the walk had stopped at the first partial match (defect B5)."""
    true_raw: int
    """``raw`` if the walk had stopped at the first partial match."""
    accessed: int
    """Nodes on the walk, the root included."""

    @property
    def branches_off(self) -> bool:
        """Whether the walk left an edge in its middle."""
        return self.raw > self.reusable


@dataclass(slots=True)
class Eviction:
    """One victim, as it was when it was chosen."""

    kind: EvictionKind
    own_tokens: int
    path_tokens: int
    last_access: int
    """Logical clock, in ticks."""
    freed_bytes: int
    path_hash: str | None = None
    """Set when the configuration asks for details."""
    candidates: int | None = None
    """How many nodes it was chosen from; only where nodes are scored."""
    score: float | None = None
    margin: float | None = None
    """Distance to the second lowest score; 0 is a tie, None that there was no other candidate."""


@dataclass(slots=True)
class RequestRecord:
    """One request: its lookup, the lookup inside its insert, and what the insert evicted."""

    index: int
    input_tokens: int
    output_tokens: int
    lookup: Lookup
    inserted: Lookup
    """The lookup of input and output together, inside the insert."""
    bytes_to_remove: int | float
    """What the insert asked to be evicted; fractional for vLLM+, 0 if nothing was asked."""
    evictions: list[Eviction]
    nodes: int
    """Nodes after the insert, without the root."""
    kv_tokens: int
    """Tokens whose KV is cached after the insert."""
    tree_bytes: int

    @property
    def matched(self) -> int:
        """Tokens of the input that were reused."""
        return self.lookup.reusable

    @property
    def evict_called(self) -> bool:
        """Whether the insert had to ask for room."""
        return self.bytes_to_remove > 0

    @property
    def bytes_freed(self) -> int:
        """Bytes the victims really held."""
        return sum(victim.freed_bytes for victim in self.evictions)


@dataclass(slots=True)
class Summary:
    """Totals over all requests so far. FLOPs are exact (specification 9)."""

    requests: int = 0
    hits: int = 0
    """Requests with at least one reused token."""
    input_tokens: int = 0
    matched_tokens: int = 0
    full_input_matches: int = 0
    flops_saved_ssm: int = 0
    flops_saved_attn: int = 0
    flops_saved_mlp: int = 0
    prefill_flops: int = 0
    """FLOPs of prefilling every input without reuse."""
    evict_calls: int = 0
    under_evict_calls: int = 0
    """Evict calls that freed less than was asked for."""
    over_evict_calls: int = 0
    """Evict calls that went on after enough was free."""
    evicted_leaves: int = 0
    evicted_merges: int = 0
    zero_margins: int = 0
    """Decisions between exactly equal scores; counted only with details."""
    max_tree_bytes: int = 0
    requests_over_capacity: int = 0
    """Requests after which the tree held more than its capacity (B7)."""
    phantom_matches: int = 0
    """Lookups that report reuse of a sequence never seen (B5)."""
    phantom_raws: int = 0
    branch_offs: int = 0
    """Inserts that left an edge in its middle."""
    branch_offs_in_output: int = 0
    """Those whose branch point lies in the generated output (B9)."""
    first_evict_request: int | None = None
    """Counted from 1."""
    nodes: int = 0
    kv_tokens: int = 0
    clock: int = 0
    alpha: float | None = None
    bootstrap_window: int | None = None
    """Requests the tuner replays (V2), once it is known."""
    stale_parents: int = 0
    """Nodes whose parent pointer, as published, names a node merged away long ago (B2)."""

    @property
    def request_hit_rate(self) -> float:
        """Share of requests with at least one reused token."""
        return self.hits / self.requests if self.requests else 0.0

    @property
    def token_hit_rate(self) -> float:
        """Share of input tokens that were reused."""
        return self.matched_tokens / self.input_tokens if self.input_tokens else 0.0

    @property
    def flops_saved(self) -> int:
        """FLOPs saved in all layers."""
        return self.flops_saved_ssm + self.flops_saved_attn + self.flops_saved_mlp

    @property
    def flops_saved_share(self) -> float:
        """Saved FLOPs over the FLOPs of prefilling every input without reuse."""
        return self.flops_saved / self.prefill_flops if self.prefill_flops else 0.0

    @property
    def evicted(self) -> int:
        """Victims of both kinds."""
        return self.evicted_leaves + self.evicted_merges
