"""What a launch leaves on the table: a line each, with what taking it saved or holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

#: Prefill FLOPs that policy 3 saved, in %: means over the cells of the lab, at the costs of
#: Qwen3-Next and SGLang's default split. ``policy-3`` and ``policy-3-one-memory`` of
#: ``results/policies.jsonl``.
CELLS = 15
SAVED_IN_TWO_POOLS, SAVED_IN_ONE_MEMORY = 61.1, 68.2

ONE_MEMORY_LIMIT = "one memory for states and KV was not run on a GPU"


@dataclass(frozen=True)
class LaunchFacts:
    """What hints are about.

    Attributes:
        policy: its number.
        orders_kv: it orders KV too, and not states alone.
        could_share_memory: states and KV have a pool each, and SGLang would put them in one.
        state_bytes: of a cached state over all ranks, as it is in float32 and as it would be in
            bfloat16; ``None`` where it is not float32, or may not be another.
        host_share: bytes of the host tier to a byte of the device's pools; ``None``: there is no
            such tier, or it is not known.
    """

    policy: int
    orders_kv: bool
    could_share_memory: bool = False
    state_bytes: tuple[int, int] | None = None
    host_share: float | None = None


def hints(facts: LaunchFacts) -> tuple[str, ...]:
    """A sentence for each thing that the launch could do better; none where it could not."""
    return tuple(_hints(facts))


def _hints(facts: LaunchFacts) -> Iterator[str]:
    # The figures are of policy 3 over both pools, and say nothing of another.
    if facts.could_share_memory and facts.policy == 3 and facts.orders_kv:
        yield (
            f"states and KV have a pool each; in one memory of the same size "
            f"(--enable-unified-memory) policy 3 saved {SAVED_IN_ONE_MEMORY:.1f} % of prefill "
            f"FLOPs, in two pools {SAVED_IN_TWO_POOLS:.1f} % (means of {CELLS} cells of our lab, "
            f"default split); {ONE_MEMORY_LIMIT}"
        )
    if facts.state_bytes is not None:
        own, half = facts.state_bytes
        yield (
            f"states are float32, {_mebibytes(own)} each over all ranks; as bfloat16 "
            f"(--mamba-ssm-dtype bfloat16) {_mebibytes(half)}, so the same bytes hold "
            f"{own / half:.2f} times as many; it can change answers, which we did not compare, "
            f"and which kernels SGLang takes"
        )
    if facts.host_share is not None and facts.host_share < 1:
        # Rounded down, so that what is smaller never reads as equal.
        share = math.floor(facts.host_share * 100) / 100
        yield (
            f"the host tier has {share:.2f} bytes for each byte of the device's pools "
            f"(--hicache-ratio, --hicache-size); SGLang serves on, but what has no copy below the "
            f"device is computed again once the device evicts it"
        )


def _mebibytes(number: int) -> str:
    return f"{number / 2**20:.3g} MiB"
