"""Which rows are older than the code that they speak of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rows.part import Part
from rows.sources import NoHistory, Sources
from rows.store import Rows


@dataclass(frozen=True)
class Age:
    """Rows of one part that were measured at one commit.

    Attributes:
        part: its name.
        commit: that made the rows.
        dates: first and last on which they were measured.
        machines: classes of machines.
        rows: how many.
        transcribed: how many of them were taken over from an earlier page.
        changed: files whose code is in no file of that commit; None where this history lacks it.
    """

    part: str
    commit: str
    dates: tuple[str, str]
    machines: tuple[str, ...]
    rows: int
    transcribed: int
    changed: tuple[str, ...] | None


def ages(rows: Rows, parts: dict[str, Part], sources: Sources) -> Iterator[Age]:
    """The age of every part's rows, in the order of the parts."""
    for name, part in parts.items():
        of_part = rows.part(name)
        commits = dict.fromkeys(row["measured"]["commit"] for row in of_part)
        for commit in commits:
            measured = [row["measured"] for row in of_part if row["measured"]["commit"] == commit]
            dates = sorted(one["date"] for one in measured)
            yield Age(
                part=name,
                commit=commit,
                dates=(dates[0], dates[-1]),
                machines=tuple(dict.fromkeys(one["machine"] for one in measured)),
                rows=len(measured),
                transcribed=sum(one.get("transcribed") is True for one in measured),
                changed=_changed(part, commit, sources),
            )


def _changed(part: Part, commit: str, sources: Sources) -> tuple[str, ...] | None:
    try:
        return tuple(sources.changed(part.code, commit))
    except NoHistory:
        return None


def age_table(found: list[Age]) -> str:
    """Markdown, a line a part and commit."""
    lines = [
        "| part | rows | measured | at commit | on | the code since |",
        "|---|---:|---|---|---|---|",
    ]
    for age in found:
        span = " to ".join(dict.fromkeys(age.dates))
        copied = f", {age.transcribed} from an earlier page" if age.transcribed else ""
        state = "**changed**" if age.changed else "the same"
        if age.changed is None:
            state = "unknown: not in this history"
        machines = "; ".join(age.machines)
        cells = (f"`{age.part}`", f"{age.rows}{copied}", span, f"`{age.commit}`", machines, state)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
