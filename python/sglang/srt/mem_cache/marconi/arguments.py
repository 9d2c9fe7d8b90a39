"""The options that a base offers, and the same arguments whichever base parses them."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sglang.srt.mem_cache.marconi.config import (
    AUTO,
    DEFAULT_EFF_WEIGHT,
    FLAGS,
    MarconiConfigError,
    MarconiFlag,
    check_value,
)


def without_tuner(flags: Sequence[MarconiFlag]) -> tuple[MarconiFlag, ...]:
    """The options of a base that has no tuner: the weight is a number, and so is its default."""
    return tuple(
        replace(flag, default=DEFAULT_EFF_WEIGHT, words=(), about_auto="")
        if flag.default == AUTO
        else flag
        for flag in flags
        if not (flag.of_tuner or flag.by_process)
    )


def add_cli_args(parser: argparse.ArgumentParser, flags: Sequence[MarconiFlag] = FLAGS) -> None:
    """Add Marconi's options to ``parser``; one that is not given is ``None``.

    Args:
        flags: the options that there are on this base.
    """
    group = parser.add_argument_group("marconi")
    for flag in flags:
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
