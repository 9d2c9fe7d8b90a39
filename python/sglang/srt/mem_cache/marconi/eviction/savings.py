"""What evicting one cached prefix gives up (FLOPs) and what it frees (bytes)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sglang.srt.mem_cache.marconi.prefix import CachedPrefix


class CostModel(Protocol):
    """FLOPs and bytes of a model's prefixes; see ``sglang.srt.marconi_utils.ModelCost``."""

    @property
    def kv_bytes_per_token(self) -> float: ...

    @property
    def state_bytes(self) -> float: ...

    def flops(self, start: int, end: int) -> float:
        """FLOPs to prefill tokens ``start..end-1`` on a surviving prefix of ``start`` tokens."""
        ...


class Savings(Protocol):
    """Prices one cached prefix."""

    @property
    def cost(self) -> CostModel:
        """FLOPs and bytes of the model."""
        ...

    def flops_saved(self, prefix: CachedPrefix) -> float:
        """FLOPs that a request ending exactly here saves because this prefix is cached."""
        ...

    def bytes_freed(self, prefix: CachedPrefix) -> float:
        """Bytes set against those FLOPs, whichever pool is short."""
        ...


class SurvivingSavings:
    """Measured from the deepest state that survives above; bytes are what really comes free.

    A prefix without a state saves nothing: no request can resume from it. Evicting a leaf frees
    its state and the KV that only it can use; evicting from under a child frees the state alone.
    """

    def __init__(self, cost: CostModel) -> None:
        self.cost = cost

    def flops_saved(self, prefix: CachedPrefix) -> float:
        if not prefix.has_state:
            return 0.0
        return float(self.cost.flops(prefix.reuse_from, prefix.depth))

    def bytes_freed(self, prefix: CachedPrefix) -> float:
        freed = float(self.cost.state_bytes) if prefix.has_state else 0.0
        if prefix.is_leaf:
            freed += self.cost.kv_bytes_per_token * (prefix.depth - prefix.exclusive_from)
        return freed


class ParentSavings:
    """The founding plan's form (section 2.4): relative to the parent, over whole-path memory.

    It assumes that the parent holds a state, even where it holds none, and counts all KV of the
    path as this prefix's own, also what others share. Kept for comparison.
    """

    def __init__(self, cost: CostModel) -> None:
        self.cost = cost

    def flops_saved(self, prefix: CachedPrefix) -> float:
        if not prefix.has_state:
            return 0.0
        return float(self.cost.flops(prefix.segment_from, prefix.depth))

    def bytes_freed(self, prefix: CachedPrefix) -> float:
        return self.cost.state_bytes + self.cost.kv_bytes_per_token * prefix.depth


SAVINGS: dict[str, Callable[[CostModel], Savings]] = {
    "surviving": SurvivingSavings,
    "parent": ParentSavings,
}


def flop_efficiency(savings: Savings, prefix: CachedPrefix) -> float:
    """FLOPs saved per byte (paper, section 4.2); 0 where evicting frees nothing."""
    freed = savings.bytes_freed(prefix)
    return savings.flops_saved(prefix) / freed if freed > 0 else 0.0
