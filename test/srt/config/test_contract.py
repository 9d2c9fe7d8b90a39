"""The contract is whole, it holds on the installed SGLang, and what moves is named."""

from __future__ import annotations

import ast
import collections
import importlib
import inspect
import logging
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, MethodType

import numpy as np
import pytest
import sglang
import sglang.srt.plugins.marconi as plugin
import torch
from sglang.srt.plugins.marconi_contract import COMPILED, CONTRACT, Need
from sglang.srt.plugins.marconi_doctor import main
from sglang.srt.plugins.marconi_moves import compare, moves
from sglang.srt.plugins.marconi_names import Found, Release

PYTHON = Path(__file__).resolve().parents[3] / "python"
OURS = {
    ".".join(path.relative_to(PYTHON).with_suffix("").parts): path
    for path in PYTHON.rglob("*.py")
    if path.name != "__init__.py"
}
#: These rely on SGLang: neither our neutral modules nor the contract's own do.
_NEUTRAL = ("mem_cache.marconi.", "marconi_utils", "plugins.marconi_contract")
_NEUTRAL += ("plugins.marconi_moves", "plugins.marconi_names")
ADAPTERS = {
    name: ast.parse(path.read_text())
    for name, path in OURS.items()
    if not name.removeprefix("sglang.srt.").startswith(_NEUTRAL)
}
PATHS = {need.path for need in CONTRACT}
INSTALLED = Path(sglang.__path__[0]).parent
#: Our package lies in the same folder.
OUR_FILES = Release(INSTALLED)


def of(path: str) -> Need:
    (need,) = [need for need in CONTRACT if need.path == path]
    return need


# -- it holds


def test_the_installed_release_holds_it():
    assert len(CONTRACT) == len(PATHS) > 250, "each name once"
    assert list(moves(Release(INSTALLED), CONTRACT, OUR_FILES)) == []
    assert Release(INSTALLED).version == plugin.SUPPORTED_SGLANG


def parameters(signature: str) -> list[str]:
    given = ast.parse(f"def f{signature}: ...").body[0].args
    names = (*given.posonlyargs, *given.args, *given.kwonlyargs)
    rest = [parameter for parameter in (given.vararg, given.kwarg) if parameter is not None]
    return sorted(parameter.arg for parameter in (*names, *rest))


@pytest.mark.parametrize("need", [n for n in CONTRACT if n.signature], ids=lambda need: need.path)
def test_a_signature_is_what_python_says_of_the_object(need):
    thing = inspect.unwrap(plugin._raw(need.path))
    fields = getattr(thing, "__struct_fields__", None)
    said = list(inspect.signature(thing).parameters if fields is None else fields)
    if isinstance(thing, type) and not need.path.startswith(COMPILED):
        said.append("self")
    assert sorted(said) == parameters(need.signature)


def test_the_compiled_results_have_what_is_read():
    reads = [n for n in CONTRACT if n.path.startswith(COMPILED) and n.kind == "read"]
    assert reads and all(plugin._raw(need.path) for need in reads)


# -- it is whole


def test_every_hook_is_in_it():
    hooks = {need.path: parameters(need.signature) for need in CONTRACT if need.kind == "hook"}
    assert set(hooks) == {hook.target for hook in plugin.HOOKS}
    assert all(set(hook.parameters) <= set(hooks[hook.target]) for hook in plugin.HOOKS)


def imported() -> Iterator[str]:
    for tree in ADAPTERS.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_import_of_sglangs_is_in_it():
    theirs = {
        name for name in imported() if name not in OURS and name.rpartition(".")[0] not in OURS
    }
    assert len(theirs) > 30
    owners = {path.rpartition(".")[0] for path in PATHS}
    assert theirs - PATHS - owners == set()


def derived() -> Iterator[type]:
    """Our classes with a base of SGLang's."""
    for name in ADAPTERS:
        module = importlib.import_module(name)
        for thing in vars(module).values():
            if isinstance(thing, type) and thing.__module__ == name and theirs_of(thing):
                yield thing


def theirs_of(thing: type) -> list[type]:
    names = ((base, base.__module__) for base in thing.__mro__)
    return [base for base, name in names if name.startswith("sglang.") and name not in OURS]


@pytest.mark.parametrize("thing", derived(), ids=lambda thing: thing.__name__)
def test_what_we_derive_from_and_override_is_in_it(thing):
    base, *further = theirs_of(thing)
    path = f"{base.__module__}.{base.__qualname__}"
    assert of(path).kind == "subclass"
    ours = [vars(each) for each in thing.__mro__ if each.__module__ in OURS]
    names = {
        name
        for members in ours
        for name, member in members.items()
        if any(name in vars(above) for above in (base, *further))
        and (isinstance(member, FunctionType) or name[:2] != "__")
        and name not in ("_abc_impl", "_is_protocol", "__subclasshook__")
    }
    assert names
    assert {
        n for n in names if f"{path}.{n}" not in PATHS or of(f"{path}.{n}").kind != "override"
    } == set()


def looked_up() -> Iterator[str]:
    """Names that our adapters look up on objects, those of modules that they import aside."""
    for tree in ADAPTERS.values():
        modules = {
            (alias.asname or alias.name).partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        for node in ast.walk(tree):
            root = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(node, ast.Attribute) and not (
                isinstance(root, ast.Name) and root.id in modules
            ):
                yield node.attr
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
                named = node.args[1]
                yield from [named.value] if isinstance(named, ast.Constant) else []


def our_names() -> Iterator[str]:
    """What our own classes define or assign."""
    for path in OURS.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield from [node.attr] if ast.unparse(node.value) == "self" else []
            if isinstance(node, ast.ClassDef | ast.Module):
                targets = [s.target for s in node.body if isinstance(s, ast.AnnAssign)]
                targets += [t for s in node.body if isinstance(s, ast.Assign) for t in s.targets]
                yield from (t.id for t in targets if isinstance(t, ast.Name))


def test_every_name_that_only_sglangs_objects_can_have_is_in_it():
    everyones = (str, dict, set, list, bytes, type, int, collections.OrderedDict, pathlib.Path)
    everyones += (torch.Tensor, torch.dtype, np.ndarray, logging.Logger, FunctionType, MethodType)
    known = {name for each in everyones for name in dir(each)} | set(our_names()) | {"close"}
    known |= {name for need in CONTRACT for name in need.path.split(".")[-2:]}
    missing = {name for name in looked_up() if name not in known and "marconi" not in name}
    assert missing == {"architectures"}, "which is of transformers' config"


@pytest.mark.parametrize("user", sorted({need.user for need in CONTRACT}))
def test_who_is_said_to_need_a_name_has_it(user):
    text = (PYTHON / "sglang" / "srt" / user).read_text()
    names = {need.path.rpartition(".")[2] for need in CONTRACT if need.user == user}
    assert {name for name in names if name.strip("_") not in text} == set()


# -- what moved is named

CACHE = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache"
PREFIX = "sglang.srt.mem_cache.base_prefix_cache"


@pytest.fixture
def altered(tmp_path):
    """A tree of a few of SGLang's files, in which one text stands for another."""
    files = (
        "_version.py",
        "srt/mem_cache/unified_radix_cache.py",
        "srt/mem_cache/base_prefix_cache.py",
    )
    for file in files:
        (tmp_path / "sglang" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(INSTALLED / "sglang" / file, tmp_path / "sglang" / file)

    def replace(*changes: tuple[str, str]) -> Path:
        for file in files:
            path = tmp_path / "sglang" / file
            text = path.read_text()
            for old, new in changes:
                text = text.replace(old, new)
            path.write_text(text)
        return tmp_path

    return replace


def moved(root: Path) -> dict[str, str]:
    there = [need for need in CONTRACT if need.path.startswith((CACHE, PREFIX))]
    return {move.need.path: move.words for move in moves(Release(root), there, OUR_FILES)}


def test_a_copy_that_was_not_altered_holds_it(altered):
    assert moved(altered()) == {}


@pytest.mark.parametrize(
    ("old", "new", "path", "words"),
    [
        ("def _match_tree(", "def _match_in_tree(", f"{CACHE}._match_tree", "is gone"),
        ("class EvictResult", "class Evicted", f"{PREFIX}.EvictResult", "is gone"),
        (
            "def on_release(self, req: Req, *, checkpointed: bool)",
            "def on_release(self, req: Req, *, kept: bool)",
            f"{CACHE}.on_release",
            "changed: (self, req, *, checkpointed) -> (self, req, *, kept)",
        ),
        (
            "def _apply_eviction_result(self, result:",
            "def _apply_eviction_result(self, tree, result:",
            f"{CACHE}._apply_eviction_result",
            "changed: (self, result) -> (self, tree, result)",
        ),
        (
            "    last_visited_node_id:",
            "    last_node:",
            f"{PREFIX}.MatchResult.last_visited_node_id",
            "is gone",
        ),
        ("    mamba_num: int", "    states: int", f"{PREFIX}.EvictParams.mamba_num", "is gone"),
        (
            "self.enable_mamba_extra_buffer = ",
            "self.extra_buffer = ",
            f"{CACHE}.enable_mamba_extra_buffer",
            "is gone",
        ),
    ],
)
def test_what_moved_is_named(altered, old, new, path, words):
    assert moved(altered((old, new)))[path] == words


def test_a_name_of_ours_that_sglang_takes_is_named(altered):
    # One of the mixin's, one that an object of ours gets.
    taken = altered(("self.disable = params.disable", "self.stats = self._shared = None"))
    words = {path: words for path, words in moved(taken).items() if "too" in words}
    assert words == {f"{CACHE}.{name}": "is SGLang's too" for name in ("stats", "_shared")}


def test_what_a_base_class_has_counts(altered):
    root = altered(("def _match_tree(", "def _elsewhere("), ("class BasePrefixCache", "class Base"))
    assert f"{CACHE}._match_tree" in moved(root)
    both = root / "sglang/srt/mem_cache/base_prefix_cache.py"
    both.write_text(
        both.read_text() + "\nclass BasePrefixCache:\n    def _match_tree(self, params): ...\n"
    )
    assert f"{CACHE}._match_tree" not in moved(root)


@pytest.mark.parametrize(
    ("kind", "old", "new", "breaks"),
    [
        ("call", "(self, a)", "(self, a, b=None)", False),
        ("call", "(self, a)", "(self, a, *, b=None)", False),
        ("call", "(self, a, b)", "(self, a, b=None)", False),
        ("call", "(self, *, a=1)", "(self, a=1)", False),
        ("call", "(self, a)", "(self, a, **rest)", False),
        ("override", "(self, a)", "(self, a, b=None)", True),
        ("hook", "(self, a)", "(self, a, *, b=None)", True),
        ("call", "(self, a)", "(self, a, b)", True),
        ("call", "(self, a)", "(self, a, *, b)", True),
        ("call", "(self, a, b)", "(self, a)", True),
        ("call", "(self, a, b)", "(self, b, a)", True),
        ("call", "(self, a=1)", "(self, a=2)", True),
        ("call", "(self, a=1)", "(self, a)", True),
        ("call", "(self, a)", "(self, *, a)", True),
        ("call", "(self, a, **rest)", "(self, a)", True),
        ("call", "(self, a)", None, True),
        ("read", "", "(self)", True),
    ],
)
def test_what_is_new_and_optional_breaks_only_what_stands_in(kind, old, new, breaks):
    move = compare(Need("a.b", kind, old, "us", "nothing"), Found(new))
    assert move is not None and move.breaks == breaks


# -- the command


def test_the_doctor_exits_as_the_contract_holds(altered, capsys):
    assert main(["--contract"]) == 0
    assert f"{len(CONTRACT)} names are relied on, 0 moved" in capsys.readouterr().out
    assert main(["--contract", "--sglang", str(altered())]) == 1, "most files are not there"
    out = capsys.readouterr().out
    assert "ComponentType.MAMBA is gone" in out and "no compiled tree core" in out
    assert COMPILED not in out and f"SGLang {plugin.SUPPORTED_SGLANG}: " in out
    assert main(["--contract", "--sglang", "/nowhere"]) == 2
    assert main(["--contract", "--release", "0.5.22"]) == 2


def test_the_doctor_reads_a_wheel(altered, capsys, tmp_path):
    wheel = shutil.make_archive(str(tmp_path.parent / tmp_path.name), "zip", altered())
    assert main(["--contract", "--sglang", wheel]) == 1
    from_wheel = capsys.readouterr().out
    main(["--contract", "--sglang", str(tmp_path)])
    assert from_wheel == capsys.readouterr().out


def test_the_doctor_speaks_where_our_own_modules_could_not_be_imported():
    words = (
        "import sys; from sglang.srt.plugins.marconi_doctor import main; main(['--contract']);"
        "sys.exit(any(n in sys.modules for n in "
        "('sglang.srt.plugins.marconi', 'sglang.srt.mem_cache.mamba_radix.core')))"
    )
    assert subprocess.run([sys.executable, "-c", words]).returncode == 0
