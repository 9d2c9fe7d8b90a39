"""Tables of a host tier: prefill seconds saved, and what was copied for it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rows.cells import CELLS
from rows.parts.host import CAPACITIES, CLAIRVOYANT, POLICIES, SHARES, WRITE_POLICIES, row_id
from rows.store import Row, Rows
from rows.tables.common import markdown, memory, numbers, of_part, optional

_TITLES = {"lru": "stock", "policy-3": "policy 3"}


_COPIED = {"written_gib": "written, GiB", "loaded_gib": "loaded, GiB"}


def saved(rows: Rows) -> str:
    """Prefill seconds saved, under each write policy, by stock's order and policy 3."""
    of_part(rows, "host")
    lines = []
    for trace, sizes in CELLS.items():
        for capacity in CAPACITIES:
            for share in SHARES:
                line = [trace, memory(capacity, sizes[capacity]), f"{share} times"]
                for write_policy in WRITE_POLICIES:
                    ids = {
                        policy: row_id(trace, capacity, share, write_policy, policy)
                        for policy in POLICIES.values()
                    }
                    values = {
                        policy: optional(rows.by_id.get(id), "seconds_saved")
                        for policy, id in ids.items()
                    }
                    line += numbers(values, values)
                bound = rows.by_id.get(row_id(trace, capacity, share, "none", CLAIRVOYANT))
                line += numbers({CLAIRVOYANT: optional(bound, "seconds_saved")})
                lines.append(line)
    titles = [
        f"`{write_policy}`: {_TITLES[policy]}"
        for write_policy in WRITE_POLICIES
        for policy in POLICIES.values()
    ]
    return markdown(["trace", "memory", "host", *titles, "clairvoyant"], lines, words=3)


def means(rows: Rows) -> str:
    """Seconds saved, means over the cells by the size of the host."""
    found = of_part(rows, "host")
    runs = [(write, policy) for write in WRITE_POLICIES for policy in POLICIES.values()]
    lines = []
    for share in SHARES:
        by_run: dict[tuple[str, str], list[Row]] = {}
        for row in found:
            if row["host_share"] == share:
                by_run.setdefault((row["write_policy"], row["policy"]), []).append(row)
        saved = {
            f"{write} {policy}": _mean(by_run.get((write, policy), ()))
            for write, policy in (*runs, ("none", CLAIRVOYANT))
        }
        contest = [name for name in saved if not name.endswith(CLAIRVOYANT)]
        lines.append([f"{share} times", *numbers(saved, contest)])
    titles = [f"`{write}`: {_TITLES[policy]}" for write, policy in runs]
    return markdown(["host", *titles, CLAIRVOYANT], lines, words=1)


def _mean(rows: Sequence[Row]) -> float | None:
    return fmean(float(row["seconds_saved"]) for row in rows) if rows else None


def copied(rows: Rows) -> str:
    """GiB written to the host and loaded from it."""
    found = of_part(rows, "host")
    lines = []
    for write_policy in WRITE_POLICIES:
        for policy in POLICIES.values():
            of_both = [
                row
                for row in found
                if (row["write_policy"], row["policy"]) == (write_policy, policy)
            ]
            sums = {key: sum(float(row[key]) for row in of_both) for key in _COPIED}
            lines.append([f"`{write_policy}`", _TITLES[policy], *numbers(sums, digits=0)])
    return markdown(["write policy", "order", *_COPIED.values()], lines, words=2)
