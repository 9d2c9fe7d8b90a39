"""The two modes: the simulator as it was published, and with its four agreed defects corrected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Fixes:
    """Which defects of the published simulator are corrected (specification 12).

    The phantom match (B5) is a rule of both modes, so it has no switch here.
    """

    mlp_of_parent: bool = False
    """B1: subtract the parent's MLP FLOPs from the MLP savings, not its attention FLOPs."""
    reparent: bool = False
    """B2: tell the grandchildren of a merged-away node who their parent is; no decision changes."""
    bytes_of_victim: bool = False
    """B3: claim the bytes of the evicted leaf, not those of the last candidate in pre-order."""
    memory_of_segment: bool = False
    """B4: charge a node the KV of its own segment, not that of the whole path."""


AS_PUBLISHED = Fixes()
CORRECTED = Fixes(mlp_of_parent=True, reparent=True, bytes_of_victim=True, memory_of_segment=True)
MODES: Mapping[str, Fixes] = MappingProxyType(
    {"as_published": AS_PUBLISHED, "corrected": CORRECTED}
)
"""Both modes by name."""
