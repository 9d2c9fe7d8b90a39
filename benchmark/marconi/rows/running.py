"""Runs the commands of a part, goes on where it was stopped, and writes the part's rows."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rows.part import TRACES, Command, Found, Part, Record, json_lines
from rows.sources import Sources
from rows.store import Row, merged, read_rows, write_part


class RunFailed(RuntimeError):
    """A command that ended with an error; the message has the command and its last words."""


@dataclass(frozen=True)
class Place:
    """Where a part runs.

    Attributes:
        root: of the repository.
        rows: folder of the rows.
        traces: folder of the traces.
        scratch: folder in which unfinished results are kept.
        jobs: runs of the simulator at a time.
    """

    root: Path
    rows: Path
    traces: Path
    scratch: Path
    jobs: int = 1


def run_part(part: Part, place: Place, sources: Sources, only: Sequence[str] = ()) -> list[Row]:
    """Run what is missing of a part, write its rows and return them.

    Args:
        only: run commands alone whose :attr:`Command.out` is among these, and keep the rows of the
            others.

    Raises:
        RunFailed: a command ended with an error; what was finished is kept.
        ValueError: the code is not committed, or a trace is missing.
    """
    commit = sources.commit_of(part.code)
    folder = folder_of(part, place, sources)
    folder.mkdir(parents=True, exist_ok=True)
    for command in part.commands:
        if not only or command.out in only:
            _run(command, folder, place)
    return collect(part, place, folder, commit, whole=not only)


def collect(
    part: Part, place: Place, folder: Path, commit: str, *, whole: bool = False
) -> list[Row]:
    """Write the rows of what a folder has of a part, and return them.

    Args:
        whole: it has all of the part, so that no earlier row stays.
    """
    new = [_complete(row, part, commit) for row in part.rows(found(part, folder))]
    old = [row for row in read_rows(place.rows).by_id.values() if row["part"] == part.name]
    rows = list(merged(old, new, kept=() if whole else [row["id"] for row in old]))
    write_part(place.rows, part.name, rows)
    return new


def folder_of(part: Part, place: Place, sources: Sources) -> Path:
    """Where unfinished results of a part are kept: another folder when its code changes."""
    return place.scratch / f"{part.name}-{sources.digest(part.code)}"


def found(part: Part, folder: Path) -> Found:
    """What the commands of a part gave so far."""
    records: dict[str, Sequence[Record]] = {}
    for command in part.commands:
        path = folder / f"{command.out}.jsonl" if command.appends else _done(command, folder)
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        records[command.out] = json_lines(text) if command.appends else command.read(text)
        beside = folder / f"{command.out}.requests.jsonl"
        if beside.exists():
            records[f"{command.out}.requests"] = json_lines(beside.read_text(encoding="utf-8"))
    return records


def machine() -> str:
    """The class of this machine, its name left out."""
    processor = platform.machine().replace("_", "-")
    gpu = "a GPU" if shutil.which("nvidia-smi") else "no GPU"
    return f"{os.cpu_count()} cores, {processor}, {gpu}"


def _complete(row: Row, part: Part, commit: str) -> Row:
    return {
        **row,
        "measured": {
            **row["measured"],
            "commit": commit,
            "date": datetime.date.today().isoformat(),
            "sglang": part.sglang or importlib.metadata.version("sglang"),
            "python": platform.python_version(),
            "machine": machine(),
        },
    }


def _run(command: Command, folder: Path, place: Place) -> None:
    words = [
        str(place.traces / word.removeprefix(f"{TRACES}/"))
        if word.startswith(f"{TRACES}/")
        else word
        for word in command.words
    ]
    name = command.words[0].rpartition("/")[2]
    done = _done(command, folder)
    if done.exists():
        return
    if command.appends:
        words += ["--out", str(folder / f"{command.out}.jsonl")]
    if name == "simulate.py":
        words += ["--jobs", str(place.jobs)]
    print(f"{command.typed()}", file=sys.stderr, flush=True)
    log = folder / f"{command.out}.log"
    with log.open("a", encoding="utf-8") as errors:
        ended = subprocess.run(
            [sys.executable, *words],
            cwd=place.root,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=False,
        )
    if ended.returncode:
        last = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RunFailed(f"{command.typed()}\nended with {ended.returncode}:\n{last}")
    done.write_text(ended.stdout, encoding="utf-8")


def _done(command: Command, folder: Path) -> Path:
    """Where what a finished command printed is kept."""
    digest = hashlib.blake2b(command.typed().encode(), digest_size=6).hexdigest()
    return folder / f"{command.out}-{digest}.txt"
