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
SHARES = (1, 4)
CAPACITIES = ("starved", "middle")
REQUESTS = 2000


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


def _rows(found: Found) -> list[Row]:
    rows: list[Row] = []
    for command in _commands():
        trace, words = command.out, command.words
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


HOST = Part(
    "host",
    "what stock's order and policy 3 save where the host's memory lies below the device's",
    15,
    CACHE_CODE,
    tuple(_commands()),
    _rows,
)
