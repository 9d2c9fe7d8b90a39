"""The console script finds its commands, and the old module says where it went."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
from sglang.srt.mem_cache.marconi.command_line import COMMANDS, main


def test_the_wheel_installs_it():
    (script,) = entry_points(group="console_scripts", name="sglang-marconi")
    assert script.load() is main


def test_version_names_both(capsys: pytest.CaptureFixture[str]):
    assert main(["version"]) == 0
    expected = [f"{name} {version(name)}" for name in ("sglang-marconi", "sglang")]
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("words", [["guess"], ["version", "--verbose"]])
def test_what_it_does_not_know_is_named(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(words) == 2
    assert repr(words[-1]) in capsys.readouterr().err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert main([]) == 2


def test_the_old_module_says_where_it_went_and_goes_there():
    command = [sys.executable, "-m", "sglang.srt.mem_cache.marconi.advise", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "sglang-marconi advise" in done.stderr
    assert "--recording" in done.stdout
