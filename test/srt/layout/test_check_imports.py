"""The check of imports sees what it is there to see."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from check_imports import PACKAGE, wrong_imports

NEUTRAL = "srt/mem_cache/marconi/eviction/odd.py"
ADAPTER = "srt/mem_cache/mamba_radix/odd.py"


def found(tmp_path: Path, name: str, line: str) -> list[str]:
    path = tmp_path / "sglang" / name
    path.parent.mkdir(parents=True)
    path.write_text(f"def late():\n    {line}\n")
    return list(wrong_imports(tmp_path / "sglang", {"lab"}, {"tree_harness"}))


@pytest.mark.parametrize(
    ("name", "line", "named"),
    [
        (NEUTRAL, "from sglang.srt.mem_cache.radix_cache import RadixKey", "radix_cache"),
        (NEUTRAL, "import sglang.srt.mem_cache.mamba_radix.core", "mamba_radix.core"),
        (NEUTRAL, "from sglang import srt", "sglang"),
        (NEUTRAL, "from lab.costs import load_cost", "lab.costs"),
        (ADAPTER, "import tree_harness", "tree_harness"),
    ],
)
def test_an_import_over_a_border_is_named(tmp_path: Path, name: str, line: str, named: str):
    (problem,) = found(tmp_path, name, line)
    assert re.search(rf"odd imports (\S+\.)?{named}\b", problem)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (NEUTRAL, "from sglang.srt.mem_cache.marconi.prefix import Pool"),
        (NEUTRAL, "from sglang.srt.marconi_utils import ModelCost"),
        (ADAPTER, "from sglang.srt.mem_cache.radix_cache import RadixKey"),
    ],
)
def test_an_import_that_is_allowed_is_not(tmp_path: Path, name: str, line: str):
    assert found(tmp_path, name, line) == []


def test_our_modules_keep_to_it():
    assert list(wrong_imports(PACKAGE, {"lab", "live", "traces"}, {"tree_harness"})) == []
