"""The console script ``sglang-marconi``: one command line, a command for each question."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from pkgutil import resolve_name

_ABOUT = """\
usage: sglang-marconi COMMAND [OPTIONS]

  advise    which split of memory, policy and admission would have saved most on recorded requests
  doctor    what a launch with these flags would activate, or why it would be refused;
            --contract: what moved in SGLang of all that the plugin relies on
  version   which sglang-marconi and which SGLang are installed

sglang-marconi COMMAND --help says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status, 2 where there is no such command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_ABOUT, end="")
        return 0 if words else 2
    command = COMMANDS.get(words[0])
    if command is None:
        known = ", ".join(COMMANDS)
        print(f"sglang-marconi: {words[0]!r} is no command; known are {known}", file=sys.stderr)
        return 2
    status: int = resolve_name(command)(words[1:])
    return status


def version(argv: Sequence[str]) -> int:
    """Print what is installed."""
    if argv:
        print(f"sglang-marconi version takes no options, but {argv[0]!r} is given", file=sys.stderr)
        return 2
    for name in ("sglang-marconi", "sglang"):
        try:
            print(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            print(name, "is not installed")
    return 0


_PACKAGE = "sglang.srt.mem_cache.marconi"
#: What can be asked, by name, and who answers; nothing is loaded before it is asked.
COMMANDS: dict[str, str] = {
    "advise": f"{_PACKAGE}.advice.command:main",
    "doctor": "sglang.srt.plugins.marconi_doctor:main",
    "version": f"{_PACKAGE}.command_line:version",
}
