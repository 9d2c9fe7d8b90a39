"""Tests of one group run in one worker: else each worker starts the group's server anew."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

TESTS = """
import pytest

PARAMS = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in "ab"]

@pytest.fixture(scope="module", params=PARAMS)
def server(request):
    return request.param

def test_first(server): pass
def test_second(server): pass
def test_third(server): pass
"""


def test_a_group_stays_in_one_worker(tmp_path: Path):
    """As the Makefile runs the tests of servers; pytest-xdist 3.8.0 under pytest 9.2 fails it."""
    (tmp_path / "test_grouped.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-v", "-n", "2", "--dist", "loadgroup", tmp_path]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    workers = defaultdict(set)
    for worker, group in re.findall(r"\[(gw\d)\].*PASSED .*\[(\w)\]", done.stdout):
        workers[group].add(worker)
    assert {group: len(of) for group, of in workers.items()} == {"a": 1, "b": 1}
