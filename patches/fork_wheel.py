"""Builds the fork's wheel from the release's wheel."""

from __future__ import annotations

import base64
import compileall
import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from series import Series, SeriesError, read

#: Every file of the wheel carries it, so that equal inputs give equal wheels.
_TIME = (2025, 1, 1, 0, 0, 0)


def build_wheel(series: Series, marconi_version: str, out: Path, base: Path | None) -> Path:
    """Write ``sglang-<release>+marconi.<ours>-py3-none-any.whl`` into the directory ``out``.

    Args:
        base: the release's wheel; ``None`` to take it from the package index.

    Raises:
        SeriesError: there is no one wheel of the release, the base is another, the series does not
            apply, or a module of the result does not compile. Nothing is left in ``out``.
    """
    if series.wheel_sha256 is None:
        raise SeriesError(
            f"{series.distribution} {series.version} has a wheel for each platform, and none is "
            f"built of it; allowed are --install and --tree"
        )
    with tempfile.TemporaryDirectory(prefix="sglang-fork-") as scratch:
        wheel = base or download(series, Path(scratch) / "download")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != series.wheel_sha256:
            raise SeriesError(
                f"{wheel} is not the wheel of {series.distribution} {series.version} on the "
                f"package index: expected is sha256 {series.wheel_sha256}"
            )
        tree = Path(scratch) / "tree"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tree)
        series.check_tree(tree)
        for name, text in forked(series, tree).items():
            write(tree / name, text)
        version = f"{series.version}+marconi.{marconi_version}"
        information = _rename_distribution(series, version, tree)
        if not compileall.compile_dir(tree, quiet=1, workers=0):
            raise SeriesError("a module of the fork does not compile; see above")
        result = out / f"{series.distribution}-{version}-py3-none-any.whl"
        out.mkdir(parents=True, exist_ok=True)
        unfinished = result.with_suffix(".part")
        _pack(tree, information, unfinished)
        unfinished.replace(result)
    return result


def forked(series: Series, root: Path) -> dict[str, str]:
    """Text of every patched and every added file, by its name, for the package below ``root``."""
    texts = {name: series.apply(name, read(root / name)) for name in series.hunks}
    return texts | {name: read(source) for name, source in series.modules.items()}


def write(path: Path, text: str) -> None:
    """Replace a file, never change it in place: an installer may share it with its cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".marconi-part")
    unfinished.write_bytes(text.encode())
    if path.exists():
        unfinished.chmod(path.stat().st_mode)
    unfinished.replace(path)


def download(series: Series, directory: Path) -> Path:
    """The release's wheel from the package index that pip is set up for.

    Raises:
        SeriesError: pip could not get it.
    """
    wanted = f"{series.distribution}=={series.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(directory), wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    found = list(directory.glob("*.whl"))
    if done.returncode or len(found) != 1:
        raise SeriesError(f"pip could not download {wanted}: {done.stderr.strip()}")
    return found[0]


def record_entry(name: str, data: bytes) -> tuple[str, str, str]:
    """A line of RECORD (PEP 376 as amended by PEP 427): name, hash, size in bytes."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return name, f"sha256={digest}", str(len(data))


def _rename_distribution(series: Series, version: str, tree: Path) -> str:
    """Give the unpacked wheel its new version; returns the new name of its dist-info."""
    old = tree / f"{series.distribution}-{series.version}.dist-info"
    information = f"{series.distribution}-{version}.dist-info"
    metadata = read(old / "METADATA")
    line = f"\nVersion: {series.version}\n"
    if metadata.count(line) != 1:
        raise SeriesError(f"METADATA of the base does not say its version as {line.strip()!r}")
    old.rename(tree / information)
    write(tree / information / "METADATA", metadata.replace(line, f"\nVersion: {version}\n"))
    return information


def _pack(tree: Path, information: str, wheel: Path) -> None:
    files = [path for path in tree.rglob("*") if path.is_file()]
    names = [path.relative_to(tree).as_posix() for path in files if "__pycache__" not in path.parts]
    record = f"{information}/RECORD"
    # A wheel's own metadata comes last, RECORD at its very end.
    names = sorted(set(names) - {record}, key=lambda name: (name.startswith(information), name))
    rows = [record_entry(name, (tree / name).read_bytes()) for name in names]
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([*rows, (record, "", "")])
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            _add(archive, name, (tree / name).read_bytes())
        _add(archive, record, lines.getvalue().encode())


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)
