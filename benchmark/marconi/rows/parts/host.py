"""The part with a host tier: what stock and policy 3 save below the device, and what they copy."""

from __future__ import annotations

from collections.abc import Iterator

from rows.cells import CELLS
from rows.part import Command, Found, Part, percent
from rows.parts.simulated import CACHE_CODE, in_cells, saved, simulate
from rows.store import Row

POLICIES = {"lru": "lru", "server:3": "policy-3"}
WRITE_POLICIES = ("write_through", "write_back")
#: Sizes of the host's memory, in multiples of the device's.
SHARES = (1, 4, 10)
#: Bounds what any order could save, had the device the memory of both and nothing to copy.
CLAIRVOYANT = "clairvoyant"
CAPACITIES = ("starved", "middle")
REQUESTS = 2000


def of_both_memories(gib: float, share: int) -> float:
    """GiB of a device's memory and a host's so many times as large."""
    return round(gib * (1 + share), 2)


def row_id(trace: str, capacity: str, share: int, write_policy: str, policy: str) -> str:
    """The id of one run's row."""
    return f"host/{trace}/{capacity}/{share}/{write_policy.replace('_', '-')}/{policy}"


def _commands() -> Iterator[Command]:
    for trace, sizes in CELLS.items():
        gibs = ",".join(f"{sizes[capacity]:g}" for capacity in CAPACITIES)
        for share in SHARES:
            for write_policy in WRITE_POLICIES:
                yield simulate(
                    *(trace, gibs, list(POLICIES), "--limit", str(REQUESTS)),
                    *("--host-share", str(share), "--host-write-policy", write_policy),
                )
        yield _clairvoyant_command(trace)


def _clairvoyant_command(trace: str) -> Command:
    gibs = {
        of_both_memories(CELLS[trace][capacity], share)
        for capacity in CAPACITIES
        for share in SHARES
    }
    return simulate(
        *(trace, ",".join(f"{gib:g}" for gib in sorted(gibs)), [CLAIRVOYANT]),
        *("--engine", "shadow", "--limit", str(REQUESTS)),
    )


def _rows(found: Found) -> list[Row]:
    rows: list[Row] = []
    for command in _commands():
        trace, words = command.out, command.words
        if "--host-share" not in words:
            rows += _clairvoyant_rows(trace, found)
            continue
        share = int(words[words.index("--host-share") + 1])
        write_policy = words[words.index("--host-write-policy") + 1]
        served = (
            record
            for record in found.get(trace, ())
            if record["host"] is not None
            and (record["host"]["share"], record["host"]["write_policy"]) == (share, write_policy)
        )
        sizes = {capacity: CELLS[trace][capacity] for capacity in CAPACITIES}
        for cell, record in in_cells(served, sizes, POLICIES):
            copied = record["copied_bytes"]
            rows.append(
                {
                    "part": "host",
                    "id": row_id(trace, cell["capacity"], share, write_policy, cell["policy"]),
                    **{"trace": trace, "host_share": share, "write_policy": write_policy, **cell},
                    **saved(record),
                    "seconds_saved": percent(record["seconds_saved"]),
                    "written_gib": round(copied["written"] / 2**30, 2),
                    "loaded_gib": round(copied["loaded"] / 2**30, 2),
                    "measured": {"command": command.typed()},
                }
            )
    return rows


def _clairvoyant_rows(trace: str, found: Found) -> Iterator[Row]:
    """What the clairvoyant saves with the memory of both, which copies nothing."""
    alone = [record for record in found.get(trace, ()) if record["policy"] == CLAIRVOYANT]
    for share in SHARES:
        for capacity in CAPACITIES:
            gib = of_both_memories(CELLS[trace][capacity], share)
            for cell, record in in_cells(alone, {capacity: gib}, {CLAIRVOYANT: CLAIRVOYANT}):
                yield {
                    "part": "host",
                    "id": row_id(trace, capacity, share, "none", CLAIRVOYANT),
                    **{"trace": trace, "host_share": share, "write_policy": "none", **cell},
                    **saved(record),
                    "seconds_saved": percent(record["flops_saved"]),
                    "measured": {"command": _clairvoyant_command(trace).typed()},
                }


HOST = Part(
    "host",
    "what stock's order and policy 3 save where the host's memory lies below the device's",
    25,
    CACHE_CODE,
    tuple(_commands()),
    _rows,
)
