"""The fork is built exactly, refused clearly, and taken back byte for byte."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import build_fork
import fork_environment
import fork_wheel
import pytest
from series import SeriesError, load_series, parse_patch, read

REPOSITORY = Path(__file__).resolve().parents[2]
SERIES = REPOSITORY / "patches" / "v0.5.4"
PATCHES = sorted(SERIES.glob("[0-9]*.patch"))
TOUCHED = "sglang/srt/managers/scheduler.py"
NOT_PATCHED = "sglang/srt/mem_cache/mamba_radix_cache.py"


@pytest.fixture(scope="session")
def series():
    return load_series(SERIES, REPOSITORY / "python")


@pytest.fixture(scope="session")
def base(series, tmp_path_factory) -> Path:
    """The release's wheel, from the package index once."""
    kept = Path(os.environ.get("SGLANG_MARCONI_CACHE", tmp_path_factory.mktemp("base")))
    wheel = kept / f"sglang-{series.version}-py3-none-any.whl"
    return wheel if wheel.exists() else fork_wheel.download(series, kept)


@pytest.fixture(scope="session")
def unpacked(base, tmp_path_factory) -> Path:
    tree = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(base) as archive:
        archive.extractall(tree)
    return tree


@pytest.fixture
def tree(series, unpacked, tmp_path) -> Path:
    """The files that the series reads, laid out as upstream's repository."""
    for name in series.sha256:
        (tmp_path / "python" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(unpacked / name, tmp_path / "python" / name)
    return tmp_path


@pytest.fixture
def environment(unpacked, tmp_path) -> str:
    """An environment with nothing but the release in it; returns its interpreter."""
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    shutil.copytree(unpacked, site, dirs_exist_ok=True)
    return str(tmp_path / "venv" / "bin" / "python")


def site_of(environment: str) -> Path:
    (site,) = (Path(environment).parents[1] / "lib").glob("python*/site-packages")
    return site


def snapshot(root: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, mode and time of every file but Python's own caches."""
    return {
        path.relative_to(root).as_posix(): (
            path.read_bytes(),
            path.stat().st_mode,
            path.stat().st_mtime_ns,
        )
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def run(*arguments: str) -> int:
    return build_fork.main(list(arguments))


# -- the series


def test_patches_only_insert_and_quote_nothing():
    for path in PATCHES:
        body = [line for line in read(path).splitlines()[2:] if not line.startswith(("---", "+++"))]
        assert all(re.match(r"\+|@@ -\d+,0 \+\d+(,\d+)? @@ anchor", line) for line in body), path


def test_git_applies_the_series_as_we_do(series, tree, unpacked):
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    command = ["git", "apply", "--unidiff-zero", *map(str, PATCHES)]
    subprocess.run(command, cwd=tree, check=True)
    for name in series.hunks:
        patched = read(tree / "python" / name)
        assert patched == series.apply(name, read(unpacked / name))
        assert series.undo(name, patched) == read(unpacked / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--- a\n+++ b/python/x.py\n@@ -1,0 +2 @@ anchor 0123456789ab\n-gone\n", "only insertions"),
        ("--- a\n+++ b/python/x.py\n@@ -1,0 +2 @@ anchor 0123456789ab\n quoted\n", "only insert"),
        ("--- a\n+++ b/python/x.py\n@@ -1 +1 @@ anchor 0123456789ab\n+new\n", "no hunk of a pure"),
        ("--- a\n+++ b/python/x.py\n@@ -1,0 +2 @@\n+new\n", "no hunk of a pure"),
        ("--- a\n+++ b/python/x.py\n@@ -5,0 +7 @@ anchor 0123456789ab\n+new\n", "contradicts"),
        ("--- a\n+++ b/x.py\n@@ -1,0 +2 @@ anchor 0123456789ab\n+new\n", "does not lie below"),
        ("--- a\n+++ b/python/x.py\n@@ -1,0 +2,2 @@ anchor 0123456789ab\n+new\n", "ends within"),
        ("--- a\n+++ b/python/x.py\n", "has none"),
    ],
)
def test_a_patch_that_does_more_than_insert_is_refused(text, message):
    with pytest.raises(SeriesError, match=message):
        parse_patch("0001.patch", text)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_hunk_that_would_land_elsewhere_is_refused(series, tree, shift):
    hunks = series.hunks[TOUCHED]
    moved = replace(hunks[0], after=hunks[0].after + shift)
    wrong = replace(series, hunks={**series.hunks, TOUCHED: (moved, *hunks[1:])})
    before = snapshot(tree)
    with pytest.raises(SeriesError, match=rf"line {moved.after} of {TOUCHED} would land elsewhere"):
        fork_environment.patch_checkout(wrong, tree)
    assert snapshot(tree) == before


def test_a_file_without_a_checksum_is_refused(tmp_path):
    shutil.copytree(SERIES, tmp_path / "series")
    stray = "--- a\n+++ b/python/sglang/x.py\n@@ -0,0 +1 @@ anchor 0123456789ab\n+new\n"
    (tmp_path / "series" / "0009-stray.patch").write_text(stray)
    with pytest.raises(SeriesError, match=r"no sha256 for sglang/x\.py"):
        load_series(tmp_path / "series", REPOSITORY / "python")


# -- a checkout


def test_a_checkout_is_patched_once(series, tree, capsys):
    assert run("--tree", str(tree)) == 0
    for name in series.hunks:
        assert series.undo(name, read(tree / "python" / name)) is not None
    for name, source in series.modules.items():
        assert read(tree / "python" / name) == read(source)
    before = snapshot(tree)
    assert run("--tree", str(tree)) == 1
    assert "has the series applied already; nothing was changed" in capsys.readouterr().err
    assert snapshot(tree) == before


@pytest.mark.parametrize("name", [TOUCHED, NOT_PATCHED])
def test_another_base_is_refused_and_left_alone(tree, capsys, name):
    path = tree / "python" / name
    path.write_text(read(path) + "\n")
    before = snapshot(tree)
    assert run("--tree", str(tree)) == 1
    error = capsys.readouterr().err
    assert f"{name} is not the file of sglang 0.5.4: its sha256 is" in error
    assert "expected is sha256" in error and snapshot(tree) == before


def test_a_missing_file_is_refused(tree, capsys):
    (tree / "python" / TOUCHED).unlink()
    assert run("--tree", str(tree)) == 1
    assert "it is missing" in capsys.readouterr().err


def test_a_half_applied_tree_is_refused_and_left_alone(series, tree, capsys):
    path = tree / "python" / TOUCHED
    path.write_text(series.apply(TOUCHED, read(path)))
    before = snapshot(tree)
    assert run("--tree", str(tree)) == 1
    assert f"applied in part: {TOUCHED}; restore sglang 0.5.4 first" in capsys.readouterr().err
    assert snapshot(tree) == before


def test_a_module_of_the_fork_that_is_there_already_is_not_overwritten(tree, capsys):
    path = tree / "python" / "sglang/srt/marconi_utils.py"
    path.write_text("mine\n")
    assert run("--tree", str(tree)) == 1
    assert "applied in part: sglang/srt/marconi_utils.py" in capsys.readouterr().err
    assert path.read_text() == "mine\n"


def test_a_failure_while_writing_leaves_the_checkout_as_it_was(series, tree, monkeypatch):
    before = snapshot(tree)
    write, calls = fork_wheel.write, []

    def failing(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) == 5:
            raise OSError("the disk is full")
        write(path, text)

    monkeypatch.setattr(fork_environment, "write", failing)
    with pytest.raises(OSError, match="the disk is full"):
        fork_environment.patch_checkout(series, tree)
    after = {name: entry[:2] for name, entry in snapshot(tree).items()}
    assert after == {name: entry[:2] for name, entry in before.items()}


def test_anchors_are_found_in_another_release(series, tree, capsys):
    path = tree / "python" / TOUCHED
    path.write_text("# a new line\n" + read(path))
    (tree / "python" / "sglang/srt/server_args.py").unlink()
    assert run("--locate", str(tree)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(map(len, series.hunks.values()))
    for hunk in series.hunks[TOUCHED]:
        assert f"{hunk.patch}: {TOUCHED} after line {hunk.after}: now {hunk.after + 1}" in lines
    assert sum(line.endswith("now not found") for line in lines) == 4


# -- the wheel


def test_the_wheel_is_the_release_plus_the_fork(series, base, unpacked, tmp_path):
    version = f"{series.version}+marconi.9.8"
    wheel = fork_wheel.build_wheel(series, "9.8", tmp_path / "out", base)
    assert wheel.name == f"sglang-{version}-py3-none-any.whl"
    again = fork_wheel.build_wheel(series, "9.8", tmp_path / "again", base)
    assert wheel.read_bytes() == again.read_bytes(), "equal inputs, equal wheels"

    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    information = f"sglang-{version}.dist-info"
    assert f"\nVersion: {version}\n" in content[f"{information}/METADATA"].decode()
    rows = list(csv.reader(io.StringIO(content[f"{information}/RECORD"].decode())))
    assert sorted(row[0] for row in rows) == sorted(content), "RECORD lists every file"
    for name, digest, size in rows:
        if name != f"{information}/RECORD":
            found = base64.urlsafe_b64encode(hashlib.sha256(content[name]).digest())
            assert digest == "sha256=" + found.rstrip(b"=").decode() and int(size) == len(
                content[name]
            )
    upstream = {
        path.relative_to(unpacked).as_posix(): path.read_bytes()
        for path in (unpacked / "sglang").rglob("*")
        if path.is_file()
    }
    changed = {name for name, data in upstream.items() if content[name] != data}
    assert changed == set(series.hunks)
    added = {name for name in content if name.startswith("sglang/")} - set(upstream)
    assert added == set(series.modules)


def test_another_wheel_is_refused(base, tmp_path, capsys):
    other = tmp_path / base.name
    other.write_bytes(base.read_bytes() + b"\0")
    assert run("--wheel", str(tmp_path / "out"), "--base", str(other)) == 1
    assert "is not the wheel of sglang 0.5.4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_fork_that_does_not_compile_is_not_built(series, base, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def :\n")
    wrong = replace(series, modules={**series.modules, "sglang/srt/broken.py": broken})
    with pytest.raises(SeriesError, match="does not compile"):
        fork_wheel.build_wheel(wrong, "1", tmp_path / "out", base)
    assert not list(tmp_path.glob("out/*"))


# -- an environment


def test_an_environment_is_patched_and_restored_byte_for_byte(series, environment, capsys):
    site = site_of(environment)
    before = snapshot(site)
    assert run("--install", environment) == 0
    for name in series.hunks:
        assert series.undo(name, read(site / name)) is not None
    record = read(site / f"sglang-{series.version}.dist-info" / "RECORD")
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(record))}
    for name in [*series.hunks, *series.modules]:
        assert tuple(rows[name]) == fork_wheel.record_entry(name, (site / name).read_bytes())[1:]

    patched = snapshot(site)
    assert run("--install", environment) == 1
    assert "the fork is installed here" in capsys.readouterr().err
    assert snapshot(site) == patched
    assert run("--uninstall", environment) == 0
    assert snapshot(site) == before
    assert not (site / "sglang/srt/mem_cache/marconi").exists()
    assert run("--uninstall", environment) == 1
    assert "has no fork to uninstall" in capsys.readouterr().err


def test_files_are_replaced_not_written_to(environment, tmp_path):
    """An installer may have linked them to its cache."""
    linked = tmp_path / "cache.py"
    os.link(site_of(environment) / TOUCHED, linked)
    pristine = linked.read_bytes()
    assert run("--install", environment) == 0
    assert linked.read_bytes() == pristine


def test_a_failed_install_is_rolled_back(series, environment, monkeypatch):
    site = site_of(environment)
    before = snapshot(site)

    def failing(*_):
        raise SeriesError("the fork does not compile")

    monkeypatch.setattr(fork_environment, "_compile", failing)
    with pytest.raises(SeriesError, match="does not compile"):
        fork_environment.install(series, environment, "1")
    assert snapshot(site) == before


def test_an_interrupted_install_is_refused_and_can_be_undone(environment, monkeypatch, capsys):
    """The process was killed between two files: nothing could be rolled back."""
    site = site_of(environment)
    before = snapshot(site)
    write, calls = fork_wheel.write, []

    def killed(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(fork_environment, "write", killed)
        patch.setattr(fork_environment, "_restore", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            run("--install", environment)
    assert snapshot(site) != before
    assert run("--install", environment) == 1
    assert "or an install was interrupted" in capsys.readouterr().err
    assert run("--uninstall", environment) == 0
    assert snapshot(site) == before


@pytest.mark.parametrize("name", [TOUCHED, "sglang/srt/marconi_wiring.py"])
def test_what_was_changed_since_is_not_overwritten(environment, capsys, name):
    site = site_of(environment)
    assert run("--install", environment) == 0
    (site / name).write_text(read(site / name) + "# mine\n")
    before = snapshot(site)
    assert run("--uninstall", environment) == 1
    assert f"{name} was changed since the fork was installed" in capsys.readouterr().err
    assert snapshot(site) == before


def test_an_interpreter_with_another_sglang_or_none_is_refused(tmp_path, capsys, environment):
    venv.create(tmp_path / "empty", with_pip=False)
    assert run("--install", str(tmp_path / "empty" / "bin" / "python")) == 1
    assert "has no sglang installed" in capsys.readouterr().err
    assert run("--install", str(tmp_path / "nothing")) == 1
    assert "does not run" in capsys.readouterr().err
    site = site_of(environment)
    (site / "sglang-0.5.4.dist-info").rename(site / "sglang-0.5.3.dist-info")
    metadata = site / "sglang-0.5.3.dist-info" / "METADATA"
    metadata.write_text(read(metadata).replace("Version: 0.5.4", "Version: 0.5.3"))
    assert run("--install", environment) == 1
    assert "has sglang 0.5.3; allowed is 0.5.4" in capsys.readouterr().err


def test_the_command_runs_by_itself(tree):
    command = [sys.executable, str(REPOSITORY / "patches" / "build_fork.py"), "--tree", str(tree)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert subprocess.run(command, capture_output=True).returncode == 1
