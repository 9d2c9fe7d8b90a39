"""Replaces named functions of SGLang and says so loudly when one is not what it was.

SGLang's own hook registry logs a failing hook and serves on with the original. A reference
kernel that silently is not in place would give wrong measurements, so this module raises.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any


class IncompatibleSGLang(RuntimeError):
    """SGLang is not the version that the replacements were written for."""


@dataclass(frozen=True)
class Replacement:
    """One name of SGLang and what stands there instead.

    ``target`` reads "module:name" or "module:Class.name". The parameter names of ``by`` must be
    those of the original: that is how a moved or changed target is found out. ``fills_gap``
    says that upstream defines no such name on a CPU. ``wraps`` says that ``by`` takes the
    original and returns what stands there.
    """

    target: str
    by: Callable[..., Any]
    fills_gap: bool = False
    wraps: bool = False


def apply(replacements: Iterable[Replacement]) -> None:
    """Check all, then replace all; raise and replace nothing if one does not fit."""
    checked = [_check(replacement) for replacement in replacements]
    for change in filter(None, checked):
        setattr(change.owner, change.name, change.new)
        _INSTALLED.append(change.new)
        if isinstance(change.owner, ModuleType) and change.original is not None:
            _rebind_imports(change.original, change.new)


@dataclass(frozen=True)
class _Change:
    owner: Any
    name: str
    original: Any
    new: Any


# What `apply` has put in place, so that it can be called again.
_INSTALLED: list[Any] = []


def _check(replacement: Replacement) -> _Change | None:
    """The change that a replacement asks for, None if it is in place; raises if it cannot be."""
    module_name, _, path = replacement.target.partition(":")
    *parents, name = path.split(".")
    try:
        owner: Any = importlib.import_module(module_name)
        for parent in parents:
            owner = getattr(owner, parent)
    except (ImportError, AttributeError) as error:
        raise IncompatibleSGLang(f"{replacement.target} has moved: {error}") from error
    original = vars(owner).get(name)
    if any(original is installed for installed in _INSTALLED):
        return None
    if replacement.fills_gap:
        if original is not None:
            raise IncompatibleSGLang(f"{replacement.target} now has an implementation of its own")
        return _Change(owner, name, None, replacement.by)
    if original is None:
        raise IncompatibleSGLang(f"{replacement.target} has moved")
    new = replacement.by(original) if replacement.wraps else replacement.by
    expected, found = _parameters(new), _parameters(original)
    if expected != found:
        raise IncompatibleSGLang(
            f"{replacement.target} takes {found}, its CPU reference takes {expected}"
        )
    return _Change(owner, name, original, new)


def _parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _rebind_imports(original: Any, replacement: Any) -> None:
    """Follow `from module import name`, which leaves copies of the original elsewhere."""
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType):
            continue
        for name, value in list(vars(module).items()):
            if value is original:
                setattr(module, name, replacement)
