"""The part that asks what clients' hints are worth: true ones, and such that mean nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rows.cells import listed_sizes, size_id
from rows.part import Command, Found, Part, Record
from rows.parts.simulated import ONE_MEMORY, SHADOW_CODE, saved, simulate
from rows.store import Row

#: GiB, where memory is so scarce that the future is worth knowing.
SIZES = {
    "mini-swe-agent-a": (6.23, 9.73),
    "sharegpt-a": (2.95,),
    "claude-code-a": (8.72,),
    "tau-airline": (1,),
}
#: Draws of hints that are wrong half of the time; the first is the command's own.
SEEDS = range(5)
SAID = ("none", "true", *(f"wrong:0.5:{seed}" for seed in SEEDS))
REQUESTS = 1500


def _commands() -> Iterator[Command]:
    for trace, gibs in SIZES.items():
        for hints in SAID:
            yield simulate(
                *(trace, listed_sizes(gibs), ["value"], *ONE_MEMORY),
                *("--limit", str(REQUESTS), "--hints", hints),
            )


def _rows(found: Found) -> list[Row]:
    rows: list[Row] = []
    commands = {(one.out, one.words[-1]): one for one in _commands()}
    for trace, gibs in SIZES.items():
        runs: Sequence[Record] = found.get(trace, ())
        for gib in gibs:
            for record in runs:
                if record["memory_gib"] != gib or record["hints"] not in SAID:
                    continue
                said = record["hints"]
                name = said.replace(":", "-").replace(".", "-")
                rows.append(
                    {
                        **{"part": "hints", "id": f"hints/{trace}/{size_id(gib)}/{name}"},
                        **{"trace": trace, "memory_gib": gib, "hints": said},
                        **saved(record),
                        "measured": {"command": commands[trace, said].typed()},
                    }
                )
    return rows


HINTS = Part(
    "hints",
    "what it is worth that clients say that a session is over, and what wrong hints cost",
    6,
    SHADOW_CODE,
    tuple(_commands()),
    _rows,
)
