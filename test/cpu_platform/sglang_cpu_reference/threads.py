"""Chooses how many threads a rank computes with, and on which CPUs."""

from __future__ import annotations

import logging
import os

import torch

logger = logging.getLogger(__name__)


BIND_VARIABLE = "SGLANG_CPU_OMP_THREADS_BIND"
COUNT_VARIABLE = "OMP_NUM_THREADS"


def settle(rank: int) -> None:
    """Choose the threads and, where the user or the platform gave each rank its own, the CPUs.

    ``rank`` counts over all data- and tensor-parallel workers of the machine. One thread unless
    OMP_NUM_THREADS says more: at the size of a tiny model a second one saves little on an idle
    machine, and on a busy one its barriers cost many times the work. Results then do not depend
    on the machine either.
    """
    torch.set_num_threads(int(os.environ.get(COUNT_VARIABLE) or 1))
    groups = os.environ.get(BIND_VARIABLE, "")
    if "|" in groups:
        wanted = parse_cpus(groups.split("|")[rank]) & os.sched_getaffinity(0)
        if not wanted:
            raise ValueError(f"{BIND_VARIABLE}={groups!r} leaves rank {rank} without a usable CPU")
        os.sched_setaffinity(0, wanted)
    logger.info(
        "CPU reference: %d thread(s) on CPUs %s",
        torch.get_num_threads(),
        sorted(os.sched_getaffinity(0)),
    )


def share(ranks: int) -> str:
    """The usable CPUs as one group for each rank, in SGLANG_CPU_OMP_THREADS_BIND's notation.

    With fewer CPUs than ranks they repeat.
    """
    usable = sorted(os.sched_getaffinity(0))
    size = max(1, len(usable) // ranks)
    starts = [rank * size % len(usable) for rank in range(ranks)]
    return "|".join(",".join(map(str, usable[start : start + size])) for start in starts)


def parse_cpus(text: str) -> set[int]:
    """The CPUs that a list like "0-3,8" names."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
