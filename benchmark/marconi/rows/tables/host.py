"""Tables of a host tier: prefill seconds saved, and what was copied for it."""

from __future__ import annotations

from rows.cells import CELLS
from rows.parts.host import CAPACITIES, POLICIES, SHARES, WRITE_POLICIES, row_id
from rows.store import Rows
from rows.tables.common import markdown, memory, numbers, of_part, optional

_TITLES = {"lru": "stock", "policy-3": "policy 3"}


def saved(rows: Rows) -> str:
    """Prefill seconds saved, under each write policy, by stock's order and policy 3."""
    return _cells(rows, "seconds_saved", digits=1)


def copied(rows: Rows) -> str:
    """GiB written to the host and loaded from it."""
    of_part(rows, "host")
    lines = []
    for write_policy in WRITE_POLICIES:
        for policy in POLICIES.values():
            known = [
                rows.by_id[id]
                for trace in CELLS
                for capacity in CAPACITIES
                for share in SHARES
                if (id := row_id(trace, capacity, share, write_policy, policy)) in rows.by_id
            ]
            sums = {key: sum(float(row[key]) for row in known) for key in _COPIED}
            lines.append([f"`{write_policy}`", _TITLES[policy], *numbers(sums, digits=0)])
    return markdown(["write policy", "order", *_COPIED.values()], lines, words=2)


_COPIED = {"written_gib": "written, GiB", "loaded_gib": "loaded, GiB"}


def _cells(rows: Rows, key: str, digits: int) -> str:
    of_part(rows, "host")
    lines = []
    for trace, sizes in CELLS.items():
        for capacity in CAPACITIES:
            for share in SHARES:
                line = [trace, memory(capacity, sizes[capacity]), f"{share} times"]
                for write_policy in WRITE_POLICIES:
                    values = {
                        policy: optional(
                            rows.by_id.get(row_id(trace, capacity, share, write_policy, policy)),
                            key,
                        )
                        for policy in POLICIES.values()
                    }
                    line += numbers(values, values, digits=digits)
                lines.append(line)
    titles = [
        f"`{write_policy}`: {_TITLES[policy]}"
        for write_policy in WRITE_POLICIES
        for policy in POLICIES.values()
    ]
    return markdown(["trace", "memory", "host", *titles], lines, words=3)
