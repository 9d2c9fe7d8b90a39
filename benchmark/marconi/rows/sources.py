"""Code by its content: what it computes, whatever its name, imports, comments and docs."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path


class NoHistory(LookupError):
    """A commit that this clone does not have."""


class Sources:
    """Digests of the code of a repository, of today's files and of those of any commit.

    Args:
        root: of the repository.
        cache: file in which digests are kept by the content that they are of.
    """

    def __init__(self, root: Path, cache: Path | None = None) -> None:
        self._root = root
        self._cache = cache
        self._known: dict[str, str] = {}
        if cache is not None and cache.exists():
            try:
                self._known = json.loads(cache.read_text())
            except ValueError:
                self._known = {}
        self._at_start = len(self._known)
        self._commits: dict[str, frozenset[str]] = {}

    def today(self, paths: Iterable[str]) -> dict[str, str]:
        """Digest of every Python file under ``paths``, by its path from the root.

        Raises:
            ValueError: a path that does not exist.
        """
        found: dict[str, str] = {}
        for path in paths:
            start = self._root / path
            if not start.exists():
                raise ValueError(
                    f"there is no {path}, which a part in rows/parts names as its code"
                )
            for file in sorted(start.rglob("*.py")) if start.is_dir() else [start]:
                content = file.read_bytes()
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                found[file.relative_to(self._root).as_posix()] = self._digest(blob, content)
        return found

    def digest(self, paths: Iterable[str]) -> str:
        """One digest of all that :meth:`today` finds."""
        text = "".join(sorted(self.today(paths).values()))
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def changed(self, paths: Iterable[str], commit: str) -> list[str]:
        """Today's files under ``paths`` whose code is in no file of ``commit``.

        Raises:
            NoHistory: this clone does not have the commit.
        """
        then = self._at(commit)
        return [path for path, digest in self.today(paths).items() if digest not in then]

    def commit_of(self, paths: Sequence[str]) -> str:
        """The newest commit that touched ``paths``.

        Raises:
            NoHistory: not a clone.
            ValueError: files there differ from it.
        """
        dirty = self._git("status", "--porcelain", "--", *paths).strip()
        if dirty:
            raise ValueError(f"code that was not committed cannot be named by a commit:\n{dirty}")
        commit = self._git("log", "-1", "--abbrev=7", "--format=%h", "--", *paths).strip()
        if not commit:
            raise NoHistory(f"no commit touches {', '.join(paths)}")
        return commit

    def save(self) -> None:
        """Keep what was learnt for another time."""
        if self._cache is not None and len(self._known) > self._at_start:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            self._cache.write_text(json.dumps(self._known))

    def _at(self, commit: str) -> frozenset[str]:
        if commit not in self._commits:
            listing = self._git("ls-tree", "-r", f"{commit}^{{tree}}")
            blobs = {
                line.split()[2] for line in listing.splitlines() if line.rpartition(".")[2] == "py"
            }
            self._read(sorted(blobs - self._known.keys()))
            self._commits[commit] = frozenset(self._known[blob] for blob in blobs)
        return self._commits[commit]

    def _read(self, blobs: Sequence[str]) -> None:
        """Digests of blobs, all in one call of git."""
        if not blobs:
            return
        answer = subprocess.run(
            ["git", "cat-file", "--batch"],
            cwd=self._root,
            input="".join(blob + "\n" for blob in blobs).encode(),
            capture_output=True,
            check=True,
        ).stdout
        place = 0
        for blob in blobs:
            end = answer.index(b"\n", place)
            size = int(answer[place:end].split()[2])
            self._digest(blob, answer[end + 1 : end + 1 + size])
            place = end + 2 + size

    def _digest(self, blob: str, content: bytes) -> str:
        if blob not in self._known:
            self._known[blob] = code_digest(content)
        return self._known[blob]

    def _git(self, *arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", *arguments], cwd=self._root, capture_output=True, check=True, text=True
            ).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise NoHistory(f"git {' '.join(arguments)}: {error}") from error


def code_digest(content: bytes) -> str:
    """Equal for two files that differ in imports, comments, docstrings and layout alone."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return hashlib.blake2b(content, digest_size=12).hexdigest()
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, [one for one in statements if not _says_nothing(one)])
    return hashlib.blake2b(ast.dump(tree).encode(), digest_size=12).hexdigest()


def _says_nothing(statement: ast.AST) -> bool:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return True
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
