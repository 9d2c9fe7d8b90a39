"""SGLang 0.5.23 as a patched tree: one insertion does what the entry point does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import build_fork
import pytest
from series import Series, load_series, read

SERIES = build_fork.PATCHES / "v0.5.23"
TOUCHED = "sglang/srt/plugins/__init__.py"

#: Parses flags as a server does, and shows what came of them.
SCRIPT = """
import json, sys
from sglang.srt.plugins import load_plugins, marconi
from sglang.srt.server_args import prepare_server_args
load_plugins()
for flags in sys.argv[1:], []:
    config = marconi.config_of(prepare_server_args(["--model-path", "none", *flags]))
    print(json.dumps([marconi.__file__, config and config.marconi_eff_weight]))
"""


@pytest.fixture(scope="module")
def series() -> Series:
    return load_series(SERIES, build_fork.REPOSITORY / "python")


@pytest.fixture
def checkout(series, tmp_path) -> Path:
    """The installed release without the plugin, laid out as upstream's repository."""
    installed = Path(metadata.distribution("sglang").locate_file("sglang"))

    def ours(folder: str, names: list[str]) -> list[str]:
        inside = Path("sglang", Path(folder).relative_to(installed))
        return [name for name in names if (inside / name).as_posix() in series.modules]

    # The builder replaces a link; it does not write through it.
    shutil.copytree(
        installed,
        tmp_path / "python" / "sglang",
        copy_function=os.symlink,
        ignore=lambda folder, names: {*ours(folder, names), "__pycache__"},
    )
    return tmp_path


def test_a_patched_tree_takes_the_flags_where_the_plugin_is_not_allowed(series, checkout):
    pristine = read(checkout / "python" / TOUCHED)
    assert build_fork.main(["--series", str(SERIES), "--tree", str(checkout)]) == 0
    assert series.undo(TOUCHED, read(checkout / "python" / TOUCHED)) == pristine
    allowed = {"PYTHONPATH": str(checkout / "python"), "SGLANG_PLUGINS": "cpu_reference"}
    environment = {**os.environ, **allowed}
    command = [sys.executable, "-c", SCRIPT, "--marconi-evict-policy", "2"]
    command += ["--marconi-eff-weight", "0.25"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    given, stock = map(json.loads, done.stdout.splitlines()[-2:])
    module = str(checkout / "python" / "sglang" / "srt" / "plugins" / "marconi.py")
    assert (given, stock) == ([module, 0.25], [module, None])


def test_git_applies_it_too(series, tmp_path):
    installed = Path(metadata.distribution("sglang").locate_file(TOUCHED))
    patched = tmp_path / "python" / TOUCHED
    patched.parent.mkdir(parents=True)
    shutil.copy2(installed, patched)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    command = ["git", "apply", "--unidiff-zero", *map(str, SERIES.glob("*.patch"))]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert read(patched) == series.apply(TOUCHED, read(installed))


def test_there_is_no_one_wheel_to_build(tmp_path, capsys):
    assert build_fork.main(["--series", str(SERIES), "--wheel", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "0.5.23 has a wheel for each platform" in error and "--install and --tree" in error
    assert not list(tmp_path.iterdir())
