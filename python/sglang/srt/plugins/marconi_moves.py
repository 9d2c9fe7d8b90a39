"""What moved between the contract and a release of SGLang, and what that means for our code."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sglang.srt.plugins.marconi_contract import COMPILED, Need
from sglang.srt.plugins.marconi_names import Found, Release


class Move(NamedTuple):
    """One entry that a release does not hold as it stands.

    Attributes:
        words: what is different.
        breaks: our code has to change; a call may go on as it is.
    """

    need: Need
    words: str
    breaks: bool


class _Parameters(NamedTuple):
    """Parameters of a function, each with its default, ``None`` where it has to be given."""

    positional: dict[str, str | None]
    by_keyword: dict[str, str | None]
    rest: set[str]


def moves(release: Release, contract: Sequence[Need], ours: Release) -> Iterator[Move]:
    """Every entry that ``release`` does not hold; without a compiled core, nothing about it.

    A name that only our class had and that SGLang's has now too is among them.

    Args:
        ours: the files in which our own classes lie.
    """
    compiled = release.find(COMPILED) is not None
    for need in contract:
        if need.kind == "subclass":
            yield from _taken(release, need, {other.path for other in contract}, ours)
        if need.path.startswith(COMPILED) and not compiled:
            continue
        move = compare(need, release.find(need.path))
        if move is not None:
            yield move


def _taken(release: Release, need: Need, agreed: set[str], ours: Release) -> Iterator[Move]:
    module = "sglang.srt." + need.user.removesuffix(".py").replace("/", ".")
    for name in sorted(ours.names_on_top(module, need.path)):
        path = f"{need.path}.{name}"
        if path not in agreed and release.find(path) is not None:
            own = Need(path, "own name", "", need.user, "one hides the other")
            yield Move(own, "is SGLang's too", True)


def compare(need: Need, found: Found | None) -> Move | None:
    """How what was ``found`` differs from what is needed; ``None`` if it does not."""
    if found is None:
        return Move(need, "is gone", True)
    takes = found.signature or ""
    if not need.signature:
        became_a_method = bool(takes) and need.kind == "read" and not found.is_class
        return Move(need, f"is a function now: {takes}", True) if became_a_method else None
    if takes == need.signature:
        return None
    if not takes or not _serves_old_calls(need.signature, takes):
        return Move(need, f"changed: {need.signature} -> {takes or 'no function'}", True)
    # Whoever calls SGLang's function may use what is new; ours stands in its place.
    stands_in = need.kind in ("hook", "override")
    return Move(need, f"takes more that is optional: {need.signature} -> {takes}", stands_in)


def _serves_old_calls(old: str, new: str) -> bool:
    """All that could be passed still can, and means the same: what is new is optional."""
    try:
        before, after = _parsed(old), _parsed(new)
    except SyntaxError:
        return False
    kept = list(after.positional.items())[: len(before.positional)]
    if len(kept) < len(before.positional) or not before.rest <= after.rest:
        return False
    pairs = [*zip(before.positional.items(), kept, strict=True)]
    for name, default in before.by_keyword.items():
        either = after.by_keyword | after.positional
        if name not in either:
            return False
        pairs.append(((name, default), (name, either[name])))
    known = {name for (name, _), _ in pairs}
    added = {**after.positional, **after.by_keyword}
    return all(was == now or (was[0] == now[0] and was[1] is None) for was, now in pairs) and all(
        default is not None for name, default in added.items() if name not in known
    )


def _parsed(signature: str) -> _Parameters:
    function = ast.parse(f"def f{signature}: ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    names = [parameter.arg for parameter in (*given.posonlyargs, *given.args)]
    defaults = [None] * (len(names) - len(given.defaults)) + [*map(ast.unparse, given.defaults)]
    keyword_defaults = [None if d is None else ast.unparse(d) for d in given.kw_defaults]
    return _Parameters(
        dict(zip(names, defaults, strict=True)),
        dict(zip([p.arg for p in given.kwonlyargs], keyword_defaults, strict=True)),
        {mark for mark, rest in (("*", given.vararg), ("**", given.kwarg)) if rest is not None},
    )
