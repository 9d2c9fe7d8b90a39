"""The timing scripts run at tiny sizes and print every row; what they measure is not looked at."""

from __future__ import annotations

import argparse
import re

import pytest
import tree_harness  # noqa: F401, hides the GPU before SGLang is imported
from speed import candidates as candidates_speed
from speed import memory as tree_memory
from speed import tree as tree_speed


def rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]


def test_a_row_for_every_operation_and_size(capsys):
    tree_speed.main(["--nodes", "8", "13", "--prompts", "256", "512", "--repeats", "2"])
    table = rows(capsys.readouterr().out)
    operations = [f"{name} {size}" for name in ("match", "insert", "unlock") for size in (256, 512)]
    operations += ["evict one state", "evict one inner state", "evict a leaf's state"]
    operations += ["evict one KV leaf"]
    assert [row[:2] for row in table] == [[n, o] for n in ("8", "13") for o in operations]
    for row in table:
        assert len(row) == 2 + len(tree_speed.VARIANTS)
        for ours in row[4:]:
            assert re.fullmatch(r"[\d,]+ \(\d+\.\d\d / \d+\.\d\d\)", ours)


@pytest.mark.parametrize("policy", [1, 2, 3])
def test_victims_of_the_rows_that_are_like_for_like(policy):
    kinds = {"inner state": "state_only", "leaf's state": "leaf_with_state"}
    with tree_speed.server_context(chunk=tree_speed.TURN_TOKENS):
        for filling, operations in tree_speed.STATIC.items():
            for operation in set(operations) & set(kinds):
                arguments = {"policy": policy, "core": "rust"}
                filled = tree_speed.Filled(40, filling, 4 * 2048, arguments)
                options = argparse.Namespace(prompts=[2048], repeats=4, warm_up=0)
                tree_speed.measure({}, {"own": filled}, [operation], options)
                assert filled.cache.cache.stats.victims == {("state", kinds[operation]): 4}


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


def test_bytes_a_node_by_part(capsys):
    tree_memory.main(["--nodes", "40"])
    table = {row[0]: row[1:] for row in rows(capsys.readouterr().out)}
    assert table.pop("token ids")[0] == f"{8 * tree_speed.TURN_TOKENS}"
    filled, turned_over = (
        {part: float(cells[at].replace(",", "")) for part, cells in table.items()} for at in (0, 1)
    )
    for column in (filled, turned_over):
        whole = column.pop("all but token ids")
        assert whole == pytest.approx(sum(column.values()), abs=len(column))
        assert all(column[part] > 0 for part in tree_memory.PARTS)
    ghosts = "lookups and ghosts"
    assert turned_over[ghosts] > 2 * filled[ghosts], "nothing that left is remembered"
