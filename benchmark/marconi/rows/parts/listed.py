"""The part that sets published policies beside policy 3, and policy 3 without an ingredient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rows.cells import CELLS, cells, listed_sizes
from rows.part import Command, Found, Part, Record, percent
from rows.parts.simulated import ONE_MEMORY, SHADOW_CODE, matching, simulate
from rows.store import Row

RATIOS = (0.1, 0.2, 0.3, 0.5, 0.9, 2.0, 4.0)
LISTS = ("s3fifo", "arc", "lirs", "lhd")
READINGS = tuple(f"{name}:{reading}" for name in LISTS for reading in ("line", "tail"))
INGREDIENTS = ("value:no-history", "value:no-learning", "value:no-returns", "value:no-cost")

_COMMON = ("lru", "superseded", *LISTS, "2q", "sieve", "value", "clairvoyant", *READINGS)
TWO_POOLS = (*_COMMON, "cap:2", "seglen", "gdsf", *INGREDIENTS, "value:state")
ONE = (*_COMMON, *INGREDIENTS)
SECOND_HALF = ("lru", "superseded", "value", "clairvoyant")
SECOND_HALF_ONE = (*SECOND_HALF, "arc:line", "lirs:line")

_SHADOW = ("--engine", "shadow")
_HALF = ("--measure-from", "0.5")


def key_of(policy: str) -> str:
    """A policy of the lab as a key of a row."""
    names = {"value": "policy_3", "2q": "two_q", "value:state": "policy_3_states"}
    return (
        names.get(policy, policy.replace("value:", "policy_3_")).replace(":", "_").replace("-", "_")
    )


def _commands() -> Iterator[Command]:
    for trace, sizes in CELLS.items():
        gibs = listed_sizes(sizes)
        yield simulate(trace, gibs, TWO_POOLS, *_SHADOW)
        yield simulate(trace, gibs, ONE, *ONE_MEMORY)
        yield simulate(trace, gibs, SECOND_HALF, *_SHADOW, *_HALF)
        yield simulate(trace, gibs, SECOND_HALF_ONE, *ONE_MEMORY, *_HALF)
        for ratio in RATIOS:
            split = ("--mamba-full-memory-ratio", f"{ratio:g}")
            if ratio != 0.9:
                yield simulate(trace, gibs, ["superseded"], *_SHADOW, *split)
                yield simulate(trace, gibs, ["superseded"], *_SHADOW, *split, *_HALF)


def _rows(found: Found) -> list[Row]:
    rows: list[Row] = []
    commands = list(_commands())
    for trace, capacity, gib in cells():
        records = found.get(trace, ())
        for memory, policies, options in (
            ("two-pools", TWO_POOLS, _SHADOW),
            ("one-memory", ONE, ONE_MEMORY),
            ("two-pools-second-half", SECOND_HALF, (*_SHADOW, *_HALF)),
            ("one-memory-second-half", SECOND_HALF_ONE, (*ONE_MEMORY, *_HALF)),
        ):
            start = 0.5 if memory.endswith("half") else 0.0
            shared = memory.startswith("one")
            runs = matching(
                records,
                engine="shadow",
                memory="elastic" if shared else "static",
                measure_from=start,
            )
            values = {
                key_of(policy): percent(runs[gib, policy]["flops_saved"])
                for policy in policies
                if (gib, policy) in runs
            }
            if not shared:
                values |= _best_split(records, gib, start)
            if not values:
                continue
            typed = next(
                command.typed()
                for command in commands
                if command.out == trace and command.words[-len(options) :] == options
            )
            rows.append(
                {
                    **{"part": "listed", "id": f"listed/{memory}/{trace}/{capacity}"},
                    **{"trace": trace, "capacity": capacity, "memory_gib": gib},
                    **values,
                    "measured": {"command": typed},
                }
            )
    return rows


def _best_split(records: Sequence[Record], gib: float, start: float) -> Mapping[str, float]:
    """The split at which ``superseded`` saves most, picked afterwards."""
    found = {}
    for ratio in RATIOS:
        runs = matching(records, engine="shadow", ratio=ratio, measure_from=start)
        if (gib, "superseded") in runs:
            found[ratio] = percent(runs[gib, "superseded"]["flops_saved"])
    if len(found) < len(RATIOS):
        return {}
    best = max(found, key=lambda ratio: found[ratio])
    return {"superseded_best_split": found[best], "best_split": best}


LISTED = Part(
    "listed",
    "what published policies save beside policy 3 and its ingredients",
    180,
    SHADOW_CODE,
    tuple(_commands()),
    _rows,
)
