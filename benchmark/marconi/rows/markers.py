"""Markers in a page: where a table or a figure stands, and putting what rows say between them.

    <!-- table: NAME -->                       a table, on lines of their own
    <!-- end table -->
    saves <!-- figure: ID.KEY -->52.3<!-- end --> %

Fenced code and markers behind a backtick are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_TABLE = re.compile(
    r"^<!-- table: (?P<name>[a-z0-9-]+) -->\n"
    r"(?P<body>(?:(?!<!-- table: ).)*?)^<!-- end table -->[ ]*$",
    re.MULTILINE | re.DOTALL,
)
_FIGURE = re.compile(
    r"(?<!`)<!--\s+figure:\s+(?P<figure>[^>]*?)\s+-->(?P<body>[^<\n]*)<!-- end -->"
)
_STARTS = re.compile(r"(?<!`)<!--\s*(?P<kind>table|figure):")
_LINE_START = re.compile(r"[ ]{0,3}(?:(?:[-*+]|\d+[.)]|>)[ ]+)*")
_FENCE = re.compile(
    r"^(?P<fence>[ ]*(?:```+|~~~+))[^\n]*\n.*?(?:^(?P=fence)[`~]*[ ]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Updated:
    """A page as its rows have it.

    Attributes:
        text: of the whole page.
        differing: what stood there otherwise, as "table NAME" or "figure ID.KEY, line N".
        problems: markers that cannot be filled, each with its line.
    """

    text: str
    differing: tuple[str, ...]
    problems: tuple[str, ...]


def updated(text: str, table: Callable[[str], str], figure: Callable[[str], str]) -> Updated:
    """Fill every marker of a page.

    Args:
        table: Markdown of a table by its name; raises ``ValueError`` if there is none.
        figure: the text of a figure; raises ``ValueError`` if it has none.
    """
    differing: list[str] = []
    problems: list[str] = list(_misplaced(text))

    def fill(found: re.Match[str], name: str, body: str, make: Callable[[str], str]) -> str:
        try:
            new = make(found[name])
        except ValueError as error:
            problems.append(f"line {_line(text, found.start())}: {error}")
            return found[0]
        new = body.format(new)
        if new == found["body"]:
            return found[0]
        kind = "table" if name == "name" else "figure"
        differing.append(f"{kind} {found[name]}, line {_line(text, found.start())}")
        start, end = (place - found.start() for place in found.span("body"))
        return found[0][:start] + new + found[0][end:]

    result, place = [], 0
    for found, is_table in _markers(text):
        result.append(text[place : found.start()])
        if is_table:
            result.append(fill(found, "name", "\n{}\n\n", table))
        else:
            result.append(fill(found, "figure", "{}", figure))
        place = found.end()
    result.append(text[place:])
    return Updated("".join(result), tuple(differing), tuple(problems))


def figures(text: str) -> list[str]:
    """Every figure that a page quotes."""
    return [found["figure"] for found, is_table in _markers(text) if not is_table]


def tables(text: str) -> list[str]:
    """The name of every table in a page."""
    return [found["name"] for found, is_table in _markers(text) if is_table]


def table_in(text: str, name: str) -> str:
    """The table that a page has under a name; nothing if it has none."""
    for found, is_table in _markers(text):
        if is_table and found["name"] == name:
            return found["body"].strip("\n")
    return ""


def _markers(text: str) -> Iterator[tuple[re.Match[str], bool]]:
    """Markers outside code, in their order, and whether each is a table's."""
    code = _code(text)
    found = [(match, True) for match in _TABLE.finditer(text)]
    inside = [match.span() for match, _ in found]
    found += [
        (match, False) for match in _FIGURE.finditer(text) if not _within(match.start(), inside)
    ]
    for match, is_table in sorted(found, key=lambda pair: pair[0].start()):
        if not _within(match.start(), code):
            yield match, is_table


def _misplaced(text: str) -> Iterator[str]:
    """Markers that are not closed, and figures that would make Markdown take a line for HTML."""
    code = _code(text)
    closed = {match.start() for match, _ in _markers(text)}
    in_tables = [match.span("body") for match in _TABLE.finditer(text)]
    for start in _STARTS.finditer(text):
        place = start.start()
        if _within(place, code) or _within(place, in_tables):
            continue
        line = text[text.rfind("\n", 0, place) + 1 : place]
        if place not in closed:
            end = "end table" if start["kind"] == "table" else "end"
            yield f"line {_line(text, place)}: a {start['kind']} without <!-- {end} -->"
        elif start["kind"] == "figure" and _LINE_START.fullmatch(line):
            yield (
                f"line {_line(text, place)}: a figure begins the line, which Markdown then takes "
                f"for HTML; put a word before it"
            )


def _code(text: str) -> list[tuple[int, int]]:
    return [found.span() for found in _FENCE.finditer(text)]


def _within(place: int, spans: list[tuple[int, int]]) -> bool:
    return any(start <= place < end for start, end in spans)


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1
