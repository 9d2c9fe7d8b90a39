"""The releases of SGLang whose cache the lab drives, each in an interpreter of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Protocol, cast

from policies import PolicyContext
from sglang.srt.mem_cache.marconi.advice.load.served import Served
from sglang.srt.mem_cache.marconi.insight.stats import MarconiStats
from traces import Request

from lab.spec import RunSpec

REPOSITORY = Path(__file__).resolve().parents[3]


class World(Protocol):
    """A cache of some base that serves a trace."""

    #: What the cache counted; ``None`` for stock's.
    stats: MarconiStats | None

    @property
    def copied_bytes(self) -> dict[str, int] | None:
        """What was ``written`` to the host and ``loaded`` from it; ``None`` without one."""
        ...

    def serve(self, requests: Iterable[Request]) -> Iterator[Served]:
        """What each request found, in the order in which they end."""
        ...


class BaseModule(Protocol):
    """What a base's module offers."""

    def check_world(self, spec: RunSpec, context: PolicyContext) -> None:
        """Refuse what this base does not do.

        Raises:
            ValueError: naming the flag, the value and what is allowed.
        """
        ...

    def open_world(self, spec: RunSpec, context: PolicyContext) -> AbstractContextManager[World]:
        """An empty cache under the spec's policy, checked for soundness at the end."""
        ...


@dataclass(frozen=True)
class Base:
    """One release.

    Attributes:
        version: of SGLang, as ``--base`` names it.
        environment: folder with its interpreter, in this repository.
        made_by: the command that makes the environment.
        module: the name of its :class:`BaseModule`.
        folder: where that module is found, in this repository.
    """

    version: str
    environment: str
    made_by: str
    module: str
    folder: str

    def load(self) -> BaseModule:
        """Its module, in the interpreter that has this base."""
        folder = str(REPOSITORY / self.folder)
        if folder not in sys.path:
            sys.path.append(folder)
        return cast(BaseModule, import_module(self.module))


BASES = {
    base.version: base
    for base in (
        Base("0.5.23", ".venv", "make setup", "lab.world_v0_5_23", "benchmark/marconi"),
        Base("0.5.4", ".venv-0.5.4", "make setup-fork", "lab_v0_5_4", "patches/v0.5.4"),
    )
}


def enter(base: Base, command: Sequence[str]) -> None:
    """Make sure of an interpreter that has ``base``: this one, or ``command`` starts anew in it.

    Does not return where it starts anew.

    Args:
        command: a script and its arguments.

    Raises:
        ValueError: there is no such interpreter.
    """
    installed = metadata.version("sglang").partition("+")[0]
    if installed == base.version:
        return
    environment = REPOSITORY / base.environment
    python = environment / "bin" / "python"
    if not python.exists() or Path(sys.prefix) == environment:
        raise ValueError(
            f"--base is {base.version} but {sys.executable} has SGLang {installed} and {python} "
            f"is not there; allowed is an interpreter with SGLang {base.version}, which "
            f"`{base.made_by}` makes"
        )
    sys.stdout.flush()
    os.execv(python, [str(python), *command])
