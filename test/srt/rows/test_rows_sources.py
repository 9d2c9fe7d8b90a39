"""Code by its content: moves, imports and words change nothing, and everything else does."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rows.age import age_table, ages
from rows.parts import PARTS
from rows.sources import NoHistory, Sources, code_digest
from rows.store import MEASURED, Rows

BEFORE = b'"""Says something."""\n\nimport os\n\n\ndef f(x):\n    """Doc."""\n    return x + 1\n'


@pytest.mark.parametrize(
    "after",
    [
        b"from b import c\n\n\ndef f(x):\n    # why\n    return x + 1\n",
        b'"""Other words."""\n\n\ndef f(\n    x,\n):\n    import sys\n    return (x + 1)\n',
    ],
)
def test_imports_words_and_layout_change_nothing(after: bytes) -> None:
    assert code_digest(after) == code_digest(BEFORE)


@pytest.mark.parametrize(
    "after", [BEFORE.replace(b"+ 1", b"+ 2"), BEFORE.replace(b"def f(x)", b"def f(x, y=0)"), b"def"]
)
def test_what_computes_something_else_has_another_digest(after: bytes) -> None:
    assert code_digest(after) != code_digest(BEFORE)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_bytes(BEFORE)
    (tmp_path / "code" / "b.py").write_text("B = 1\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(where: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@localhost", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=where, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(where: Path) -> str:
    git(where, "add", "-A")
    git(where, "commit", "-q", "-m", "some")
    return git(where, "rev-parse", "--short=7", "HEAD")


def test_a_moved_file_is_the_same_and_a_changed_one_is_named(clone: Path) -> None:
    first = Sources(clone).commit_of(["code"])
    (clone / "code" / "inner").mkdir()
    git(clone, "mv", "code/a.py", "code/inner/c.py")
    assert Sources(clone).changed(["code"], first) == []
    (clone / "code" / "b.py").write_text("B = 2\n")
    assert Sources(clone).changed(["code"], first) == ["code/b.py"]
    assert Sources(clone).digest(["code"]) != Sources(clone).digest(["code/inner"])


def test_digests_are_kept_between_calls(clone: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "code.json"
    first = Sources(clone, kept)
    first.changed(["code"], "HEAD")
    first.save()
    second = Sources(clone, kept)
    assert kept.read_text()
    assert second.digest(["code"]) == first.digest(["code"])


def test_code_that_was_not_committed_has_no_commit(clone: Path) -> None:
    (clone / "code" / "b.py").write_text("B = 3\n")
    with pytest.raises(ValueError, match=r"code/b\.py"):
        Sources(clone).commit_of(["code"])
    new = commit(clone)
    assert Sources(clone).commit_of(["code"]) == new


def test_a_commit_that_is_not_there_is_said(clone: Path) -> None:
    with pytest.raises(NoHistory, match="0123456"):
        Sources(clone).changed(["code"], "0123456")


def test_rows_of_a_lost_commit_are_of_unknown_age(clone: Path) -> None:
    measured = {name: "some text" for name in MEASURED} | {"commit": "0123456"}
    row = {"part": "tree-speed", "id": "tree-speed/one", "measured": measured}
    part = replace(PARTS["tree-speed"], code=("code",))
    (age,) = ages(Rows({row["id"]: row}), {"tree-speed": part}, Sources(clone))
    assert age.changed is None
    assert "unknown: not in this history" in age_table([age])
    measured["commit"] = git(clone, "rev-parse", "HEAD")
    (age,) = ages(Rows({row["id"]: row}), {"tree-speed": part}, Sources(clone))
    assert age.changed == () and "the same" in age_table([age])
