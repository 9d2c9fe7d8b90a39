"""The traces and the sizes of memory that the lab's tables share."""

from __future__ import annotations

MODEL = "Qwen3-Next-80B-A3B-Instruct"

#: GiB of each trace at which stock LRU saves about 33, 66 and 95 % of what a cache without
#: eviction saves, at SGLang's default split.
CELLS: dict[str, dict[str, float]] = {
    "claude-code-a": {"starved": 8.72, "middle": 19.4, "ample": 49.4},
    "mini-swe-agent-a": {"starved": 6.23, "middle": 9.73, "ample": 17.4},
    "mooncake-conversation": {"starved": 133, "middle": 332, "ample": 861},
    "sharegpt-a": {"starved": 2.95, "middle": 17.4, "ample": 69.8},
    "tau-airline": {"starved": 1, "middle": 5.19, "ample": 17.4},
}

#: Sizes of the curves over memory; the three above are among them.
SIZES: dict[str, tuple[float, ...]] = {
    "claude-code-a": (8.72, 11.5, 15, 19.4, 31, 49.4, 80),
    "mini-swe-agent-a": (6.23, 7.8, 9.73, 13, 17.4, 24, 32),
    "mooncake-conversation": (133, 210, 332, 535, 861, 1200),
    "sharegpt-a": (2.95, 5.3, 9.6, 17.4, 35, 69.8, 120),
    "tau-airline": (1, 1.7, 3, 5.19, 9.5, 17.4, 30),
}


def size_id(gib: float) -> str:
    """A size as a part of an id, ``5-19-gib``."""
    return f"{gib:g}-gib".replace(".", "-")


def cells() -> list[tuple[str, str, float]]:
    """Trace, capacity and GiB of all fifteen cells, in the order of the tables."""
    return [(trace, name, gib) for trace, sizes in CELLS.items() for name, gib in sizes.items()]


def listed_sizes(gibs: dict[str, float] | tuple[float, ...]) -> str:
    """Sizes as ``--memory-gib`` takes them."""
    values = gibs.values() if isinstance(gibs, dict) else gibs
    return ",".join(f"{gib:g}" for gib in values)
