"""The four servers that a user chooses between: their names, and the flags that tell them apart."""

from __future__ import annotations

from collections.abc import Mapping

STOCK, PAPER, VALUE, ONE_MEMORY = "stock", "paper", "policy-3", "one-memory"
TITLES: Mapping[str, str] = {
    STOCK: "stock LRU",
    PAPER: "the paper (policy 2)",
    VALUE: "policy 3",
    ONE_MEMORY: "policy 3 in one memory",
}


def own_flags(eff_weight: str) -> dict[str, tuple[str, ...]]:
    """What each server has beside the flags of all; ``eff_weight`` is the paper's alpha.

    SGLang gives one memory the bytes of both pools that the other servers have.
    """
    value = ("--marconi-evict-policy", "3")
    weight = () if eff_weight == "auto" else ("--marconi-eff-weight", eff_weight)
    return {
        STOCK: (),
        PAPER: ("--marconi-evict-policy", "2", *weight),
        VALUE: value,
        ONE_MEMORY: (*value, "--enable-unified-memory"),
    }
