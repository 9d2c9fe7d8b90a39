"""Rows: corrupt lines are reported with file and line, ids are unique, merging keeps the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rows.store import MEASURED, Row, RowErrors, checked, merged, read_rows, write_part


def row(identity: str, **values: Any) -> Row:
    measured = dict.fromkeys(MEASURED, "some text")
    return {"part": identity.partition("/")[0], "id": identity, "measured": measured, **values}


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [row("speed/b", us=1.25), row("speed/a", inner={"value": 3})]
    write_part(tmp_path, "speed", rows)
    read = read_rows(tmp_path)
    assert [one["id"] for one in read.part("speed")] == ["speed/a", "speed/b"]
    assert read.number("speed/b", "us") == 1.25
    assert read.value("speed/a", "inner.value") == 3


def test_every_corrupt_line_is_reported_with_its_file_and_line(tmp_path: Path) -> None:
    lines = [
        json.dumps(row("speed/a")),
        "{",
        "[]",
        json.dumps(row("speed/a")),
        json.dumps({**row("speed/b"), "part": "other"}),
        json.dumps(row("speed/B")),
        json.dumps({**row("speed/c"), "measured": {"command": "x"}}),
        json.dumps(row("other/d", part="speed")),
    ]
    path = tmp_path / "speed.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(RowErrors) as raised:
        read_rows(tmp_path)
    found = str(raised.value).splitlines()
    assert [line.partition(": ")[0] for line in found] == [f"{path}:{n}" for n in range(2, 9)]
    reasons = ["no JSON", "no JSON object", "already", "part is", "id is", "lacks", "its part"]
    assert all(reason in line for reason, line in zip(reasons, found, strict=True))


def test_an_id_stands_once_in_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row("a/x")) + "\n" + json.dumps(row("a/x")))
    with pytest.raises(RowErrors, match=r"a\.jsonl:2: the id 'a/x' is at .*a\.jsonl:1 already"):
        read_rows(tmp_path)


def test_missing_rows_and_keys_are_named(tmp_path: Path) -> None:
    write_part(tmp_path, "speed", [row("speed/a", inner={"value": "text"})])
    rows = read_rows(tmp_path)
    with pytest.raises(KeyError, match="no row has the id 'speed/z'"):
        rows.value("speed/z", "inner")
    with pytest.raises(KeyError, match=r"'speed/a' has no 'inner\.other'"):
        rows.value("speed/a", "inner.other")
    with pytest.raises(KeyError, match="no number"):
        rows.number("speed/a", "inner.value")


def test_a_row_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="measured"):
        write_part(tmp_path, "speed", [{"part": "speed", "id": "speed/a"}])
    assert not (tmp_path / "speed.jsonl").exists()


def test_merging_replaces_rows_by_id_and_keeps_those_that_are_asked_for() -> None:
    old = [row("a/1", v=1), row("a/2", v=1), row("a/3", v=1)]
    new = [row("a/2", v=2)]
    found = {one["id"]: one["v"] for one in merged(old, new, kept=["a/1", "a/2"])}
    assert found == {"a/1": 1, "a/2": 2}


def test_the_repository_s_rows_are_good() -> None:
    rows = read_rows(Path(__file__).resolve().parents[3] / "results")
    assert rows.part("policies")
    assert all(checked(json.dumps(one), one["part"]) for one in rows.by_id.values())
