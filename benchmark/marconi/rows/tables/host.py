"""Tables of a host tier: prefill seconds saved, and what was copied for it."""

from __future__ import annotations

from rows.cells import CELLS
from rows.parts.host import CAPACITIES, CLAIRVOYANT, POLICIES, SHARES, WRITE_POLICIES, row_id
from rows.store import Rows
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
