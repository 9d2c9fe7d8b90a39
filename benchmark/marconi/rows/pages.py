"""Every page that quotes rows: writing what the rows say into it, or finding where it differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rows import figures, markers
from rows.age import age_table, ages
from rows.part import Part
from rows.sources import Sources
from rows.store import Rows
from rows.tables import TABLES

#: The table of ages, which needs the history of the repository and not the rows alone.
AGE = "age"


@dataclass(frozen=True)
class Outcome:
    """What came of one page or picture.

    Attributes:
        path: from the root.
        content: that it must have.
        differing: tables, figures or pictures that are otherwise there.
        problems: markers that cannot be filled.
    """

    path: str
    content: bytes
    differing: tuple[str, ...]
    problems: tuple[str, ...]


def page_files(root: Path) -> list[Path]:
    """The Markdown files that may hold markers."""
    found = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    found += [root / "patches" / "README.md", *sorted((root / "benchmark").rglob("*.md"))]
    return [path for path in found if path.exists()]


def filled(root: Path, rows: Rows, age: Callable[[], str] | None) -> Iterator[Outcome]:
    """Every page of a repository, filled.

    Args:
        age: the table of ages; None leaves the one in the page, which every commit makes older.
    """

    def figure(text: str) -> str:
        return figures.printed(text, rows)

    for path in page_files(root):
        before = path.read_text(encoding="utf-8")

        def table(name: str, before: str = before) -> str:
            if name == AGE:
                return age() if age else markers.table_in(before, AGE)
            if name not in TABLES:
                raise ValueError(f"there is no table {name!r}; allowed are {', '.join(TABLES)}")
            return TABLES[name](rows)

        page = markers.updated(before, table, figure)
        name = path.relative_to(root).as_posix()
        yield Outcome(name, page.text.encode(), page.differing, page.problems)


def age_of(rows: Rows, parts: dict[str, Part], sources: Sources) -> Callable[[], str]:
    """The table of ages, made where a page asks for it."""

    def table() -> str:
        return age_table(list(ages(rows, parts, sources)))

    return table


def write(root: Path, outcome: Outcome) -> None:
    """Put a page's content in its place."""
    path = root / outcome.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(outcome.content)
