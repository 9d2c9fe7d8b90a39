"""Draws docs/images/layout.svg: the folders of the package and which of them import which.

    python docs/draw_layout.py            # --check: only say whether the picture is up to date

It reads the imports of the code and nothing else. An arrow that follows from others is left out;
imports for types alone do not count.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs/images/layout.svg"
BASE = "sglang.srt."
#: Folders that are drawn as one box with those inside them.
WHOLE = ("mem_cache/mamba_radix", "mem_cache/marconi/eviction", "mem_cache/marconi/costs")
#: In this folder lie the words that the others are said in: files that import no room.
WORDS = "mem_cache/marconi"

COLUMNS, BOX_WIDTH, BOX_HEIGHT, GAP, FLOOR = 4, 232, 96, 24, 146
TEXT, TITLE, LETTERS = 14, 15, 29
#: Room beside the outer boxes, in which arrows go down.
MARGIN = 28
WIDTH = COLUMNS * (BOX_WIDTH + GAP) - GAP + 2 * MARGIN
INK, EDGE, FILL, TOUCHES = "#1f2933", "#616e7c", "#eef2f7", "#fde8d7"

Imports = Mapping[str, frozenset[str]]
Place = tuple[float, float]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "python").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "python").with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The package's own modules that a file imports when it runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield name


def room_of(name: str, path: Path) -> str:
    """The box that a module is drawn in: its folder, or itself where it stands alone."""
    at = path.relative_to(ROOT / "python/sglang/srt")
    for folder in WHOLE:
        if at.is_relative_to(folder):
            return folder
    folder = at.parent.as_posix()
    return at.as_posix() if folder in (".", "mem_cache", "plugins") else folder


def room_names() -> dict[str, str]:
    """The room of every module."""
    known = modules()
    rooms = {name: room_of(name, path) for name, path in known.items()}
    # What lies among the words and imports a room, or what does, is none of them.
    changed = True
    while changed:
        changed = False
        for name, path in known.items():
            elsewhere = any(rooms[other] != WORDS for other in imported(path, known))
            if rooms[name] == WORDS and elsewhere and path.name != "__init__.py":
                rooms[name] = path.relative_to(ROOT / "python/sglang/srt").as_posix()
                changed = True
    return rooms


def imports_of_rooms() -> dict[str, frozenset[str]]:
    """Which rooms each room imports."""
    known, rooms = modules(), room_names()
    found: dict[str, set[str]] = {room: set() for room in rooms.values()}
    for name, path in known.items():
        found[rooms[name]] |= {rooms[other] for other in imported(path, known)} - {rooms[name]}
    return {room: frozenset(others) for room, others in sorted(found.items())}


def reachable(imports: Imports, start: str) -> set[str]:
    seen: set[str] = set()
    stack = [start]
    while stack:
        for other in imports[stack.pop()] - seen:
            seen.add(other)
            stack.append(other)
    return seen


def floors(imports: Imports) -> dict[str, int]:
    """How many rooms lie below each at most; rooms that import each other share a floor."""
    below = {room: reachable(imports, room) for room in imports}
    found: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in found:
            ring = {other for other in below[room] if room in below[other]} | {room}
            lower = set().union(*(imports[member] for member in ring)) - ring
            height = max((floor(other) + 1 for other in sorted(lower)), default=0)
            found.update(dict.fromkeys(ring, height))
        return found[room]

    for room in imports:
        floor(room)
    return found


def arrows(imports: Imports) -> list[tuple[str, str]]:
    """The imports that do not follow from others."""
    below = {room: reachable(imports, room) for room in imports}
    kept = []
    for room, others in imports.items():
        for other in sorted(others):
            rings = {step for step in others if room in below[step] or step in below[other]}
            if room in below[other] or not any(other in below[step] for step in others - rings):
                kept.append((room, other))
    return kept


def about(room: str) -> str:
    """The first paragraph of what a room says of itself."""
    if room == WORDS:
        return "The words that all of it is said in: a cached prefix, a tree."
    path = ROOT / "python/sglang/srt" / room
    if path.is_dir():
        path /= "__init__.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("``", "")


def title(room: str) -> str:
    short = room.removeprefix("mem_cache/")
    if room == WORDS:
        rooms = room_names().items()
        words = sorted(name.rpartition(".")[2] for name, where in rooms if where == WORDS)
        return f"{short}/{', '.join(word for word in words if word != 'marconi')}"
    return short if "." in short else f"{short}/"


def touches_sglang(room: str) -> bool:
    return not (room.startswith(WORDS) or room == "marconi_utils.py")


def grid(imports: Imports) -> dict[str, tuple[int, int]]:
    """Column and row of each room: what touches SGLang is on the left."""
    heights = floors(imports)
    top = max(heights.values())
    found: dict[str, tuple[int, int]] = {}

    def wanted(room: str) -> float:
        above = [found[other][0] for other in imports if room in imports[other] and other in found]
        return sum(above) / len(above) if above else COLUMNS

    for row in range(top + 1):
        rooms = [room for room in imports if heights[room] == top - row]
        left = [room for room in rooms if touches_sglang(room)]
        found.update({room: (i, row) for i, room in enumerate(left)})
        others = sorted(set(rooms) - set(left), key=lambda room: (wanted(room), room))
        last = max(len(left) - 1, 0)
        for i, room in enumerate(others):
            room_left = COLUMNS - (len(others) - i)
            last = max(last + 1, min(round(wanted(room)), room_left))
            found[room] = (last, row)
    return found


def render(imports: Imports) -> str:
    """The picture; the same imports give the same text."""
    places = {
        room: (MARGIN + column * (BOX_WIDTH + GAP), GAP + row * FLOOR)
        for room, (column, row) in grid(imports).items()
    }
    top = max(floors(imports).values())
    size = f"{WIDTH} {GAP * 2 + top * FLOOR + BOX_HEIGHT}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" '
        'font-family="Helvetica, Arial, sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="{EDGE}"/></marker></defs>',
    ]
    boxes = list(places.values())
    parts += [_arrow(places[room], places[other], boxes) for room, other in arrows(imports)]
    parts += [_box(room, *place) for room, place in sorted(places.items())]
    return "\n".join([*parts, "</svg>", ""])


def _arrow(start: Place, end: Place, boxes: Sequence[Place]) -> str:
    (x0, y0), (x1, y1) = start, end
    middle = BOX_WIDTH / 2
    # Arrows spread along the edges of a box toward where they go.
    spread = max(-80, min(80, (x1 - x0) / 5))
    a, b, bottom = x0 + middle + spread, x1 + middle - spread, y0 + BOX_HEIGHT
    others = [box for box in boxes if box not in (start, end)]
    if y0 == y1:
        right = x1 > x0
        a, b = (x0 + BOX_WIDTH, x1) if right else (x0, x1 + BOX_WIDTH)
        path = f"M{a:g} {y0 + BOX_HEIGHT * (0.4 if right else 0.6):g}H{b:g}"
    elif not any(_hits((a, bottom), (b, y1), box) for box in others):
        path = f"M{a:g} {bottom:g}L{b:g} {y1:g}"
    else:
        # Down beside the boxes that are in the way.
        side = x0 if x1 < x0 else x0 + BOX_WIDTH
        # Rows differ in where they go down, so that two arrows do not run into one.
        gutter = side + (4 + (y0 + 2 * y1) // FLOOR % 4 * 5) * (-1 if x1 < x0 else 1)
        b = x1 + middle + (BOX_WIDTH / 3 if gutter > x1 + middle else -BOX_WIDTH / 3)
        turn = y1 - (FLOOR - BOX_HEIGHT) / 2
        path = f"M{side:g} {y0 + BOX_HEIGHT * 0.75:g}H{gutter:g}V{turn:g}L{b:g} {y1:g}"
    return f'<path d="{path}" stroke="{EDGE}" fill="none" marker-end="url(#tip)"/>'


def _hits(start: Place, end: Place, box: Place) -> bool:
    """Whether a line passes behind a box, sampled finely enough for boxes of this size."""
    for i in range(1, 100):
        x = start[0] + (end[0] - start[0]) * i / 100
        y = start[1] + (end[1] - start[1]) * i / 100
        if box[0] < x < box[0] + BOX_WIDTH and box[1] < y < box[1] + BOX_HEIGHT:
            return True
    return False


def _box(room: str, x: float, y: float) -> str:
    fill = TOUCHES if touches_sglang(room) else FILL
    lines = textwrap.wrap(about(room), LETTERS)
    if len(lines) > 4:
        lines = [*lines[:3], lines[3].rstrip(".,:;") + " …"]
    texts = [
        f'<text x="{x + 8:g}" y="{y + 38 + 16 * i:g}" font-size="{TEXT}" fill="{INK}">'
        f"{escape(line)}</text>"
        for i, line in enumerate(lines)
    ]
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" '
        f'fill="{fill}" stroke="{EDGE}"/>\n'
        f'<text x="{x + 8:g}" y="{y + 19:g}" font-size="{TITLE}" font-weight="bold" fill="{INK}">'
        f"{escape(title(room))}</text>\n" + "\n".join(texts)
    )


def main() -> int:
    picture = render(imports_of_rooms())
    if sys.argv[1:] == ["--check"]:
        current = OUT.is_file() and OUT.read_text(encoding="utf-8") == picture
        print(f"{OUT.name} is {'up to date' if current else 'stale: python docs/draw_layout.py'}")
        return 0 if current else 1
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(picture, encoding="utf-8")
    print(f"wrote {OUT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
