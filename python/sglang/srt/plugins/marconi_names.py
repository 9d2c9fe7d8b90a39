"""Reads what a release of SGLang offers off its files: nothing of it is imported or installed.

Python is parsed, the compiled tree core searched for the signatures that PyO3 keeps in it as text.
"""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

Folder = Path | zipfile.Path
_Function = ast.FunctionDef | ast.AsyncFunctionDef
#: Re-exports and bases that are followed before a name counts as not there.
_DEEPEST = 16
_COMPILED_SIGNATURE = re.compile(rb"(\w+)(\([^\0]*?\))\n--\n")


@dataclass(frozen=True)
class Found:
    """What a dotted path names.

    Attributes:
        signature: parameters and their defaults, of a class those of its constructor; ``None`` for
            what is read, and for a class whose constructor says nothing of them.
        is_class: it is a class.
    """

    signature: str | None
    is_class: bool = False


@dataclass(frozen=True)
class _Place:
    """Where a name is bound: the statement, and the module that it stands in."""

    module: str
    node: ast.AST


@dataclass(frozen=True)
class _Class(_Place):
    node: ast.ClassDef


class Release:
    """The files of one release.

    Args:
        root: the folder that holds ``sglang/``, or a wheel.

    Raises:
        FileNotFoundError: there is no SGLang.
        zipfile.BadZipFile: a file that is no wheel.
    """

    def __init__(self, root: Path) -> None:
        self._root: Folder = zipfile.Path(root) if root.is_file() else root
        if not (self._root / "sglang" / "srt").is_dir():
            raise FileNotFoundError("it holds no sglang/srt")
        self._module = cache(self._parse)
        self._signatures = cache(self._compiled)

    @property
    def version(self) -> str:
        """As the build wrote it down; ``unknown`` in a source tree without one."""
        path = self._root / "sglang" / "_version.py"
        text = path.read_text() if path.is_file() else ""
        found = re.search(r"^(?:__version__ = )?version = ['\"](.+?)['\"]", text, re.MULTILINE)
        return found[1] if found else "unknown"

    def find(self, path: str) -> Found | None:
        """What the dotted ``path`` names in this release; ``None`` if nothing."""
        names = path.split(".")
        for end in range(len(names), 0, -1):
            module, rest = ".".join(names[:end]), names[end:]
            if self._module(module) is not None:
                return self._follow(module, rest) if rest else Found(None)
            if self._binary(module) is not None:
                return self._find_compiled(module, rest)
        return None

    def names_on_top(self, module: str, base: str) -> set[str]:
        """What classes of ``module`` that derive from ``base`` define, they and their mixins."""
        tree, names = self._module(module), set[str]()
        for statement in () if tree is None else tree.body:
            if isinstance(statement, ast.ClassDef):
                place = _Place(module, statement)
                bases = {f"{b.module}.{b.node.name}": b.node for b in self._bases(place)}
                if bases.pop(base, None) is not None:
                    names = names.union(*map(_defined, (statement, *bases.values())))
        return {name for name in names if name[:2] != "__"}

    # -- Python

    def _parse(self, module: str) -> ast.Module | None:
        *above, name = module.split(".")
        for end in ((name, "__init__.py"), (f"{name}.py",)):
            path = self._root.joinpath(*above, *end)
            if path.is_file():
                return ast.parse(path.read_text(encoding="utf-8"))
        return None

    def _follow(self, module: str, names: Sequence[str]) -> Found | None:
        place = self._global(module, names[0])
        for name in names[1:]:
            if place is None or not isinstance(place.node, ast.ClassDef):
                return None
            place = self._member(place, name)
        if place is None:
            return None
        if isinstance(place.node, ast.ClassDef):
            return Found(self._constructor(place), is_class=True)
        if isinstance(place.node, _Function) and not _is_property(place.node):
            return Found(f"({_parameters(place.node.args)})")
        return Found(None)

    def _global(self, module: str, name: str, depth: int = 0) -> _Place | None:
        tree = self._module(module)
        if tree is None or depth > _DEEPEST:
            return None
        found = None
        for statement in _statements(tree.body):
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    if (alias.asname or alias.name) == name:
                        origin = self._origin(module, statement)
                        found = self._global(origin, alias.name, depth + 1) or found
            elif name in _bound(statement):
                value = statement.value if isinstance(statement, ast.Assign) else None
                if isinstance(value, ast.Name):
                    found = self._global(module, value.id, depth + 1) or found
                elif found is None or value is None or name not in _mentioned(value):
                    found = _Place(module, statement)
        return found

    def _origin(self, module: str, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        is_package = (self._root.joinpath(*module.split(".")) / "__init__.py").is_file()
        above = module.split(".")[: None if is_package else -1]
        above = above[: len(above) - statement.level + 1]
        return ".".join([*above, *([statement.module] if statement.module else [])])

    def _member(self, place: _Place, name: str, depth: int = 0) -> _Place | None:
        assert isinstance(place.node, ast.ClassDef)
        if depth > _DEEPEST:
            return None
        # The last binding counts, a setter of a property aside.
        for statement in reversed(list(_statements(place.node.body))):
            setter = isinstance(statement, _Function) and _decorated(statement, "setter")
            if name in _bound(statement) and not setter:
                return _Place(place.module, statement)
        if name in _attributes(place.node):
            return _Place(place.module, ast.Pass())
        for base in self._bases(place):
            found = self._member(base, name, depth + 1)
            if found is not None:
                return found
        return None

    def _bases(self, place: _Place) -> Iterator[_Class]:
        assert isinstance(place.node, ast.ClassDef)
        for base in place.node.bases:
            expression = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(expression, ast.Name):
                found = self._global(place.module, expression.id)
                if found is not None and isinstance(found.node, ast.ClassDef):
                    yield _Class(found.module, found.node)

    def _constructor(self, place: _Place) -> str | None:
        assert isinstance(place.node, ast.ClassDef)
        if self._is_record(place):
            fields = self._fields(place)
            positional = [text for text, keyword_only in fields.values() if not keyword_only]
            keywords = [text for text, keyword_only in fields.values() if keyword_only]
            return f"({', '.join(['self', *positional, *(['*'] if keywords else []), *keywords])})"
        made = self._member(place, "__init__")
        if made is None or not isinstance(made.node, _Function):
            return None
        return f"({_parameters(made.node.args)})"

    def _is_record(self, place: _Place) -> bool:
        """It has a constructor made from its fields: a data class, or a structure of msgspec."""
        assert isinstance(place.node, ast.ClassDef)
        if any("__init__" in _bound(statement) for statement in place.node.body):
            return False
        if _decorated(place.node, "dataclass"):
            return True
        bases = [ast.unparse(base) for base in place.node.bases]
        return "msgspec.Struct" in bases or any(map(self._is_record, self._bases(place)))

    def _fields(self, place: _Place) -> dict[str, tuple[str, bool]]:
        """Fields by name, bases' first: name with default, and whether by keyword only."""
        assert isinstance(place.node, ast.ClassDef)
        found: dict[str, tuple[str, bool]] = {}
        for base in reversed(list(self._bases(place))):
            found.update(self._fields(base))
        given = [*place.node.keywords]
        for decorator in place.node.decorator_list:
            given += decorator.keywords if isinstance(decorator, ast.Call) else []
        by_keyword = any(k.arg == "kw_only" and ast.unparse(k.value) == "True" for k in given)
        for field in _statements(place.node.body):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            kind = ast.unparse(field.annotation)
            if "ClassVar" in kind:
                continue
            if "KW_ONLY" in kind:
                by_keyword = True
                continue
            name, options, text = field.target.id, {}, field.target.id
            if isinstance(field.value, ast.Call) and _called(field.value) == "field":
                options = {k.arg: ast.unparse(k.value) for k in field.value.keywords}
                if options.get("init") == "False":
                    continue
                if "default_factory" in options:
                    text += "=..."
                elif "default" in options:
                    text += f"={options['default']}"
            elif field.value is not None:
                text += f"={ast.unparse(field.value)}"
            found[name] = (text, by_keyword or options.get("kw_only") == "True")
        return found

    # -- compiled

    def _binary(self, module: str) -> Folder | None:
        *above, name = module.split(".")
        folder = self._root.joinpath(*above)
        files = folder.iterdir() if folder.is_dir() else ()
        return next((path for path in files if fnmatch(path.name, f"{name}.*.so")), None)

    def _compiled(self, module: str) -> tuple[bytes, dict[str, list[str]]]:
        path = self._binary(module)
        assert path is not None
        content = path.read_bytes()
        signatures: dict[str, list[str]] = {}
        for name, signature in _COMPILED_SIGNATURE.findall(content):
            signatures.setdefault(name.decode(), []).append(signature.decode().replace("$", ""))
        return content, signatures

    def _find_compiled(self, module: str, names: Sequence[str]) -> Found | None:
        """A name anywhere in the module: which class has it, only an import could say."""
        content, signatures = self._signatures(module)
        if not all(name.encode() in content for name in names):
            return None
        known = signatures.get(names[-1]) if names else None
        return Found(" or ".join(sorted(set(known))) if known else None, is_class=len(names) == 1)


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body, and those that it runs under a condition."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for name in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, name, ()))
            for handler in getattr(statement, "handlers", ()):
                yield from _statements(handler.body)


def _bound(statement: ast.stmt) -> set[str]:
    """Names that a statement defines or assigns."""
    if isinstance(statement, ast.ClassDef | _Function):
        return {statement.name}
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    parts = [p for t in targets for p in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return {part.id for part in parts if isinstance(part, ast.Name)}


def _mentioned(expression: ast.expr) -> set[str]:
    """Names in an expression: one that is made of what it replaces only wraps that."""
    return {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}


def _attributes(definition: ast.ClassDef) -> set[str]:
    """Names that methods of a class assign on its objects."""
    found = set()
    for method in _statements(definition.body):
        if isinstance(method, _Function) and method.args.args:
            owner = method.args.args[0].arg
            for node in ast.walk(method):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    found |= {node.attr} if ast.unparse(node.value) == owner else set()
    return found


def _defined(definition: ast.ClassDef) -> set[str]:
    return _attributes(definition).union(*map(_bound, definition.body))


def _parameters(given: ast.arguments) -> str:
    """Parameters without their types, for those change without anything moving."""
    for parameter in ast.walk(given):
        if isinstance(parameter, ast.arg):
            parameter.annotation = None
    return ast.unparse(given)


def _called(expression: ast.expr) -> str:
    function = expression.func if isinstance(expression, ast.Call) else expression
    return ast.unparse(function).rpartition(".")[2]


def _decorated(definition: ast.ClassDef | _Function, by: str) -> bool:
    return any(_called(decorator) == by for decorator in definition.decorator_list)


def _is_property(function: _Function) -> bool:
    return any(_decorated(function, by) for by in ("property", "cached_property"))
