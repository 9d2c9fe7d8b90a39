"""Patches an installed SGLang, or a checkout of its repository, and takes it back."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fork_wheel import forked, record_entry, write
from series import Series, SeriesError, digest, read

#: Beside the package: the pristine files and a list of what was changed.
BACKUP = "sglang_marconi_fork"
_ASK = (
    "import importlib.metadata as m, json;"
    "d = m.distribution({!r});"
    "print(json.dumps([d.version, str(d.locate_file('').resolve()), str(d._path)]))"
)


def locate(series: Series, python: str) -> tuple[Path, Path]:
    """Where an interpreter has the release: its site-packages and its dist-info.

    Raises:
        SeriesError: the interpreter does not run, or has another version or none.
    """
    command = [python, "-c", _ASK.format(series.distribution)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise SeriesError(f"{python} does not run: {error}") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise SeriesError(f"{python} has no {series.distribution} installed: {reason}")
    version, root, information = json.loads(done.stdout)
    if version != series.version:
        raise SeriesError(
            f"{python} has {series.distribution} {version}; allowed is {series.version}"
        )
    return Path(root), Path(information)


def patch_checkout(series: Series, checkout: Path) -> None:
    """Apply the series to a checkout of the release's tag; git keeps the way back.

    Raises:
        SeriesError: it is no pristine checkout; nothing is changed.
    """
    root = checkout / "python"
    series.check_tree(root)
    texts = forked(series, root)
    check_syntax(texts)
    pristine = {name: read(root / name) for name in series.hunks}
    _put(root, texts, pristine)


def install(series: Series, python: str, marconi_version: str) -> Path:
    """Patch the SGLang of an interpreter in place; returns its site-packages.

    Raises:
        SeriesError: it cannot be patched; nothing is changed.
    """
    root, information = locate(series, python)
    backup = root / BACKUP
    if backup.exists():
        raise SeriesError(
            f"{backup} exists: the fork is installed here, or an install was interrupted; "
            f"--uninstall {python} first"
        )
    series.check_tree(root)
    texts = forked(series, root)
    check_syntax(texts)
    record = (information / "RECORD").relative_to(root).as_posix()
    touched = [*series.hunks, record]
    directories = sorted(
        {
            parent.as_posix()
            for name in series.modules
            for parent in Path(name).parents
            if not (root / parent).exists()
        }
    )
    unfinished = root / (BACKUP + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in touched:
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, unfinished / name)
    texts[record] = _new_record(read(root / record), texts, touched)
    manifest: dict[str, Any] = {
        "marconi": marconi_version,
        "base": f"{series.distribution} {series.version}",
        "patched": {name: digest(texts[name]) for name in touched},
        "added": {name: digest(texts[name]) for name in series.modules},
        "directories": directories,
    }
    (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    unfinished.rename(backup)
    try:
        for name, text in texts.items():
            write(root / name, text)
        _compile(python, [root / name for name in texts if name.endswith(".py")])
    except BaseException:
        _restore(root, manifest)
        raise
    return root


def uninstall(series: Series, python: str) -> Path:
    """Give back the files that :func:`install` changed, byte for byte; returns site-packages.

    An interrupted install is undone too.

    Raises:
        SeriesError: there is none, or a file was changed since; nothing is changed.
    """
    root, _ = locate(series, python)
    try:
        manifest = json.loads((root / BACKUP / "manifest.json").read_text())
    except OSError as error:
        raise SeriesError(f"{root} has no fork to uninstall: {error}") from error
    for name, patched in manifest["patched"].items():
        allowed = {patched, digest(read(root / BACKUP / name))}
        if not (root / name).is_file() or digest(read(root / name)) not in allowed:
            raise SeriesError(f"{root / name} was changed since the fork was installed")
    for name, added in manifest["added"].items():
        if (root / name).is_file() and digest(read(root / name)) != added:
            raise SeriesError(f"{root / name} was changed since the fork was installed")
    _restore(root, manifest)
    return root


def check_syntax(texts: dict[str, str]) -> None:
    """Raise :class:`SeriesError` for the first text that Python does not compile."""
    for name, text in texts.items():
        try:
            compile(text, name, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise SeriesError(f"{name} of the fork does not compile: {error}") from error


def _put(root: Path, texts: dict[str, str], pristine: dict[str, str]) -> None:
    try:
        for name, text in texts.items():
            write(root / name, text)
    except BaseException:
        for name in texts:
            if name in pristine:
                write(root / name, pristine[name])
            else:
                (root / name).unlink(missing_ok=True)
        raise


def _restore(root: Path, manifest: Mapping[str, Any]) -> None:
    backup = root / BACKUP
    for name in manifest["added"]:
        (root / name).unlink(missing_ok=True)
        for compiled in (root / name).parent.glob(f"__pycache__/{Path(name).stem}.*.pyc"):
            compiled.unlink()
    for name in sorted(manifest["directories"], reverse=True):
        shutil.rmtree(root / name, ignore_errors=True)
    for name in manifest["patched"]:
        unfinished = (root / name).with_name(Path(name).name + ".marconi-part")
        shutil.copy2(backup / name, unfinished)
        unfinished.replace(root / name)
    shutil.rmtree(backup)


def _compile(python: str, files: list[Path]) -> None:
    command = [python, "-m", "compileall", "-q", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SeriesError(f"the fork does not compile: {done.stdout}{done.stderr}")


def _new_record(record: str, texts: dict[str, str], backed_up: list[str]) -> str:
    """RECORD with the fork's files in it, so that uninstalling SGLang removes them too."""
    fresh = {name: record_entry(name, text.encode()) for name, text in texts.items()}
    rows = [fresh.pop(row[0], row) for row in csv.reader(io.StringIO(record)) if row]
    rows += fresh.values()
    rows += [(f"{BACKUP}/{name}", "", "") for name in ("manifest.json", *backed_up)]
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue()
