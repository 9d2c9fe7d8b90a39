"""SGLang's own tests with our cache: made checkouts whose tests tell stock's cache from ours."""

from __future__ import annotations

import json

import pytest
from peer.compare import Difference, Outcome, Run, differences, files_of, main, read

FOLDER = "test/registered/unit/mem_cache"
#: One test holds for every cache, one only where LRU decides, and the last two not even with stock.
TESTS = """
import unittest

import torch
from lab.cpu_cache import CpuCache
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.unified_cache.tree_core_registry import _TREE_CORE_REGISTRY
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeCore
from sglang.srt.runtime_context import reset_context
from sglang.test.unified_allocator_fixtures import setup_allocator_context


class Inspector(UnifiedTreeCore):
    def paths(self):
        return len(self.root_node.children)


@unittest.skipUnless(torch.cuda.is_available(), "caches need CUDA")
class TestMade(unittest.TestCase):
    def setUp(self):
        setup_allocator_context()
        self.addCleanup(reset_context)
        stock = _TREE_CORE_REGISTRY["python"]
        _TREE_CORE_REGISTRY["python"] = Inspector
        self.addCleanup(_TREE_CORE_REGISTRY.__setitem__, "python", stock)
        self.made = CpuCache()
        self.long, self.short = list(range(100)), list(range(900, 904))
        for tokens in (self.long, self.short, list(range(910, 914)), list(range(920, 924))):
            self.made.insert(tokens)

    def test_of_every_cache(self):
        self.assertEqual(self.made.hit(self.long), 100)
        self.assertEqual(self.made.cache.tree_core.paths(), 4)

    def test_of_lru(self):
        self.made.cache.evict(EvictParams(num_tokens=0, mamba_num=1))
        self.assertEqual(self.made.look(self.long).device_prefix_len, 0)
        self.assertEqual(self.made.look(self.short).device_prefix_len, 4)

    def test_that_fails_with_stock(self):
        self.assertEqual(self.made.hit(self.short), 5)

    def test_that_is_skipped(self):
        self.skipTest("for a reason")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The output, the exit status and the files of a made checkout, with policies 1 and 2."""
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / FOLDER).mkdir(parents=True)
    (checkout / FOLDER / "test_unified_made.py").write_text(TESTS)
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda *texts, **_: said.extend(map(str, texts)))
        status = main([str(checkout), "--policies", "1", "2", "--apart"])
    return said, status, [path for path in checkout.rglob("*") if path.is_file()]


def test_the_table_has_what_is_the_same_under_each_policy(made):
    said, _, _ = made
    assert said[0].endswith("| same under 1 | same under 2 |")
    assert said[2] == "| unit/mem_cache/test_unified_made.py | 4 | 2 | 4 | 2 | 1 |"


def test_a_test_of_lru_differs_under_another_policy_only(made):
    said, status, _ = made
    test = f"{FOLDER}/test_unified_made.py::TestMade::test_of_lru"
    assert [line for line in said if line.startswith("policy ")] == [
        f"policy 2: {test}: failed: AssertionError: 100 != 0"
    ]
    assert status == 0


def test_what_stock_does_not_pass_is_told_apart(made):
    said, _, _ = made
    apart = [line for line in said if line.startswith("apart: ")]
    assert [line.partition("::TestMade::")[2] for line in apart] == [
        "test_that_fails_with_stock: failed: AssertionError: 4 != 5",
        "test_that_is_skipped: skipped: Skipped: for a reason",
    ]


def test_nothing_is_written_into_the_checkout(made):
    assert [path.name for path in made[2]] == ["test_unified_made.py"]


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "is no checkout of SGLang" in capsys.readouterr().err
    (tmp_path / FOLDER).mkdir(parents=True)
    assert main([str(tmp_path)]) == 2
    assert "has no test that concerns the cache" in capsys.readouterr().err


def test_files_are_found_once_and_by_name(tmp_path):
    for name in ("test_unified_mamba_a.py", "test_allocator.py", "unified_helper.py"):
        (tmp_path / FOLDER).mkdir(parents=True, exist_ok=True)
        (tmp_path / FOLDER / name).touch()
    assert [path.name for path in files_of(tmp_path)] == ["test_unified_mamba_a.py"]


def test_of_a_test_the_worst_counts(tmp_path):
    lines = tmp_path / "outcomes"
    outcomes = [("a", "failed", "why"), ("a", "passed", ""), ("b", "passed", "")]
    written = [{"test": t, "outcome": o, "error": e} for t, o, e in outcomes]
    lines.write_text("\n".join(map(json.dumps, [{"cache": "ours"}, *written])))
    run = read(lines, "ended early")
    assert run == Run({"a": Outcome("failed", "why"), "b": Outcome("passed")}, 1, "ended early")


def test_a_test_that_was_not_run_differs():
    stock = Run({"a": Outcome("passed"), "b": Outcome("failed"), "c": Outcome("passed")})
    ours = Run({"a": Outcome("passed"), "b": Outcome("passed")}, broke="pytest ended with status 3")
    assert list(differences(stock, ours, 1)) == [
        Difference(1, "c", "not run: pytest ended with status 3")
    ]


@pytest.mark.parametrize(("policy", "status"), [(1, 1), (2, 0)])
def test_a_difference_under_policy_1_is_an_error(tmp_path, monkeypatch, policy, status):
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "test_unified_made.py").touch()
    results = {None: "passed", 1: "passed", 2: "passed", policy: "failed"}
    monkeypatch.setattr(
        "peer.compare.run_file",
        lambda checkout, file, policy, core: Run({"a": Outcome(results[policy])}),
    )
    assert main([str(tmp_path), "--policies", "1", "2"]) == status


def test_a_checkout_whose_tests_cannot_be_collected_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "test_unified_made.py").touch()
    monkeypatch.setattr("peer.compare.run_file", lambda *_: Run())
    assert main([str(tmp_path)]) == 2
    assert "nothing was collected" in capsys.readouterr().err
