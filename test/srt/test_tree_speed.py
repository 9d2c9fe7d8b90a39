"""The timing scripts run at tiny sizes and print every row; what they measure is not looked at."""

from __future__ import annotations

import re

import candidates_speed
import pytest
import tree_harness  # noqa: F401, hides the GPU before SGLang is imported
import tree_speed


def rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]


def test_a_row_for_every_operation_and_size(capsys):
    tree_speed.main(["--nodes", "8", "13", "--prompts", "256", "512", "--repeats", "2"])
    table = rows(capsys.readouterr().out)
    operations = ["match 256", "match 512", "insert 256", "insert 512"]
    operations += ["evict one state", "evict one KV leaf"]
    assert [row[:2] for row in table] == [[n, o] for n in ("8", "13") for o in operations]
    for row in table:
        assert len(row) == 2 + len(tree_speed.VARIANTS)
        for ours in row[4:]:
            assert re.fullmatch(r"[\d,]+ \(\d+\.\d\d / \d+\.\d\d\)", ours)


def test_a_part_of_it(capsys):
    part = ["--operations", "state", "--caches", "rust", "2", "--nodes", "8", "--repeats", "1"]
    tree_speed.main(part)
    (row,) = rows(capsys.readouterr().out)
    assert row[:2] == ["8", "evict one state"] and len(row) == 4
    assert re.fullmatch(r"[\d,]+ \(\d+\.\d\d\)", row[3])
    with pytest.raises(SystemExit):
        tree_speed.main(["--operations", "nothing"])


def test_candidates_of_both_policies(capsys):
    candidates_speed.main(["--prefixes", "30", "--steps", "10"])
    table = rows(capsys.readouterr().out)
    assert [row[:2] for row in table] == [["30", "2"], ["30", "3"]]
