"""A series of insertions into one release of SGLang: read, check, apply, undo.

A patch is a unified diff without context and without deletions, so a hunk is nothing but a line
number and the lines that go in after it. Two guards stand in for the context: the sha256 of every
touched file as the release has it, and in each hunk's heading an anchor, the hash of the upstream
lines around it. ``git apply --unidiff-zero`` takes the same files and ignores the headings.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: The upstream lines that an anchor hashes: so many above the insertion, and one below.
LINES_ABOVE = 3
_HUNK = re.compile(r"@@ -(\d+),0 \+(\d+)(?:,(\d+))? @@ anchor ([0-9a-f]{12})\Z")
#: Paths in a patch are those of upstream's repository, whose package lies below python/.
_PREFIX = "b/python/"


class SeriesError(ValueError):
    """A patch, a base or a tree is not what it must be; the message says which and why."""


@dataclass(frozen=True)
class Hunk:
    """Lines to insert after line ``after`` (1-based) of a pristine file."""

    patch: str
    after: int
    lines: tuple[str, ...]
    anchor: str


@dataclass(frozen=True)
class Series:
    """All that turns one release into the fork.

    Attributes:
        distribution: name on the package index.
        version: the release.
        wheel_sha256: of the release's wheel there; ``None`` where it has one for each platform.
        hunks: insertions by file, in order; file names are those of an installed package.
        sha256: of every touched or subclassed file of the release.
        modules: files to add, by their name in an installed package.
    """

    distribution: str
    version: str
    wheel_sha256: str | None
    hunks: dict[str, tuple[Hunk, ...]]
    sha256: dict[str, str]
    modules: dict[str, Path]

    def apply(self, name: str, text: str) -> str:
        """The patched text of a pristine file.

        Raises:
            SeriesError: the file is not pristine, or a hunk would land elsewhere.
        """
        self._require_pristine(name, text)
        lines = text.splitlines(keepends=True)
        patched: list[str] = []
        taken = 0
        for hunk in self.hunks[name]:
            if hunk.after > len(lines) or anchor(lines, hunk.after) != hunk.anchor:
                raise SeriesError(
                    f"{hunk.patch}: the hunk for line {hunk.after} of {name} would land "
                    f"elsewhere: its anchor is {hunk.anchor}, the lines there have "
                    f"{anchor(lines, hunk.after)}"
                )
            patched += lines[taken : hunk.after]
            patched += hunk.lines
            taken = hunk.after
        return "".join(patched + lines[taken:])

    def undo(self, name: str, text: str) -> str | None:
        """The pristine text of a patched file, ``None`` if the file is not exactly patched."""
        lines = text.splitlines(keepends=True)
        for hunk in self.hunks[name]:
            if tuple(lines[hunk.after : hunk.after + len(hunk.lines)]) != hunk.lines:
                return None
            del lines[hunk.after : hunk.after + len(hunk.lines)]
        pristine = "".join(lines)
        return pristine if digest(pristine) == self.sha256[name] else None

    def check_tree(self, root: Path) -> None:
        """See that the series can be applied to the package below ``root``.

        Raises:
            SeriesError: the tree is another base, is patched already, wholly or in part, or has a
                file where one is to be added.
        """
        found = {name: self._state(root / name, name) for name in self.sha256}
        patched = sorted(name for name, state in found.items() if state == "patched")
        present = sorted(name for name in self.modules if (root / name).exists())
        for name, state in found.items():
            if state not in ("pristine", "patched"):
                raise SeriesError(
                    f"{root / name} is not the file of {self.distribution} {self.version}: "
                    f"{state}; expected is sha256 {self.sha256[name]}"
                )
        if len(patched) == len(self.hunks) and len(present) == len(self.modules):
            raise SeriesError(f"{root} has the series applied already")
        if patched or present:
            raise SeriesError(
                f"{root} has the series applied in part: {', '.join((patched + present)[:5])}; "
                f"restore {self.distribution} {self.version} first"
            )

    def locate(self, root: Path) -> list[str]:
        """Where each hunk's anchor is found in the package of another release, a line a hunk."""
        found = []
        for name, hunks in self.hunks.items():
            lines = read(root / name).splitlines(keepends=True) if (root / name).is_file() else []
            for hunk in hunks:
                places = [n for n in range(len(lines) + 1) if anchor(lines, n) == hunk.anchor]
                where = ", ".join(map(str, places)) or "not found"
                found.append(f"{hunk.patch}: {name} after line {hunk.after}: now {where}")
        return found

    def _state(self, path: Path, name: str) -> str:
        if not path.is_file():
            return "it is missing"
        text = read(path)
        if digest(text) == self.sha256[name]:
            return "pristine"
        if name in self.hunks and self.undo(name, text) is not None:
            return "patched"
        return f"its sha256 is {digest(text)}"

    def _require_pristine(self, name: str, text: str) -> None:
        if digest(text) != self.sha256[name]:
            raise SeriesError(
                f"{name} is not the file of {self.distribution} {self.version}: its sha256 is "
                f"{digest(text)}, expected is {self.sha256[name]}"
            )


def anchor(lines: Sequence[str], after: int) -> str:
    """Twelve hex digits that stand for the upstream lines around an insertion."""
    around = "".join(lines[max(after - LINES_ABOVE, 0) : after + 1])
    return digest(around)[:12]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read(path: Path) -> str:
    """A file's text with its line ends as they are."""
    return path.read_bytes().decode()


def load_series(directory: Path, package_root: Path) -> Series:
    """Read a series from its directory.

    Args:
        package_root: where the shared modules lie, the repository's ``python/``.

    Raises:
        SeriesError: a patch is no pure insertion, or touches a file without a checksum.
    """
    base = tomllib.loads((directory / "base.toml").read_text())
    hunks: dict[str, tuple[Hunk, ...]] = {}
    for path in sorted(directory.glob("[0-9]*.patch")):
        for name, found in parse_patch(path.name, read(path)).items():
            if name in hunks:
                raise SeriesError(f"{path.name}: {name} is patched twice in the series")
            if name not in base["sha256"]:
                raise SeriesError(f"{path.name}: base.toml has no sha256 for {name}")
            hunks[name] = found
    own = directory / "modules"
    modules = {file: own / file for file in _python_files(own, ".")} if own.is_dir() else {}
    for shared in base["shared"]:
        modules |= {file: package_root / file for file in _python_files(package_root, shared)}
    return Series(
        base["distribution"],
        base["version"],
        base.get("wheel_sha256"),
        hunks,
        base["sha256"],
        dict(sorted(modules.items())),
    )


def _python_files(root: Path, below: str) -> list[str]:
    start = root / below
    files = [start] if start.is_file() else sorted(start.rglob("*.py"))
    if not files:
        raise SeriesError(f"{start} has no modules to add")
    return [file.relative_to(root).as_posix() for file in files]


def parse_patch(patch: str, text: str) -> dict[str, tuple[Hunk, ...]]:
    """Hunks by file of one patch.

    Raises:
        SeriesError: something else than insertions in rising order.
    """
    hunks: dict[str, list[Hunk]] = {}
    name, shift, wanted = "", 0, 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        where = f"{patch}:{number}"
        if wanted:
            if not line.startswith("+"):
                raise SeriesError(f"{where}: only insertions are allowed, not {line.rstrip()!r}")
            last = hunks[name][-1]
            hunks[name][-1] = Hunk(patch, last.after, (*last.lines, line[1:]), last.anchor)
            wanted -= 1
        elif line.startswith("+++ "):
            path = line[4:].strip()
            if not path.startswith(_PREFIX):
                raise SeriesError(f"{where}: {path!r} does not lie below {_PREFIX!r}")
            name, shift = path.removeprefix(_PREFIX), 0
            hunks[name] = []
        elif line.startswith("@@"):
            match = _HUNK.match(line.rstrip("\n"))
            if match is None or not name:
                raise SeriesError(f"{where}: {line.rstrip()!r} is no hunk of a pure insertion")
            after, start, wanted = int(match[1]), int(match[2]), int(match[3] or 1)
            before = hunks[name][-1].after if hunks[name] else 0
            if start != after + shift + 1 or after < before:
                raise SeriesError(f"{where}: {line.rstrip()!r} contradicts the hunks before it")
            shift += wanted
            hunks[name].append(Hunk(patch, after, (), match[4]))
        elif line[0] in "+-" and not line.startswith("--- "):
            raise SeriesError(f"{where}: a line outside of a hunk: {line.rstrip()!r}")
    if wanted or not hunks or not all(hunks.values()):
        raise SeriesError(f"{patch}: the patch ends within a hunk or has none")
    return {name: tuple(found) for name, found in hunks.items()}
