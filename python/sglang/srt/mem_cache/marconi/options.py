"""The options on a command line: the same arguments whichever base parses them."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from sglang.srt.mem_cache.marconi.config import (
    FLAGS,
    MarconiConfigError,
    MarconiFlag,
    check_value,
)


def add_cli_args(parser: argparse.ArgumentParser) -> None:
    """Add every Marconi option to ``parser``; one that is not given is ``None``."""
    group = parser.add_argument_group("marconi")
    for flag in FLAGS:
        if flag.is_switch:
            group.add_argument(
                flag.flag, dest=flag.field, action="store_true", default=None, help=flag.help
            )
            continue
        group.add_argument(
            flag.flag,
            dest=flag.field,
            type=functools.partial(_parse, flag),
            default=None,
            metavar="{" + ",".join(map(str, flag.choices)) + "}" if flag.choices else flag.metavar,
            help=flag.help + ("" if flag.default is None else f" Default: {flag.default}."),
        )


def _parse(flag: MarconiFlag, text: str) -> Any:
    try:
        return check_value(flag, text)
    except MarconiConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
