"""Checks that imports run one way: the contract in pyproject.toml, and who may import SGLang.

    python test/check_imports.py

Run as a script: the folder python/ stands for the package ``sglang``, so that SGLang itself is
neither loaded nor mistaken for ours.
"""

from __future__ import annotations

import ast
import sys
import types
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "sglang"
#: Modules that know no release of SGLang, and what they may import of its namespace.
NEUTRAL = ("sglang.srt.mem_cache.marconi", "sglang.srt.marconi_utils")


def imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            yield node.module


def top_level_names(*folders: Path) -> set[str]:
    """What can be imported by one name where these folders are searched."""
    return {path.stem for folder in folders for path in folder.iterdir() if path.stem[0] != "."}


def wrong_imports(package: Path, laboratory: set[str], tests: set[str]) -> Iterator[str]:
    """Every import that leaves its side of a border, in words.

    Args:
        package: the folder of the package ``sglang``.
        laboratory, tests: names of modules that only measure or test.
    """
    base = package.parent
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(base).with_suffix("").parts)
        for name in imported(path):
            if name.partition(".")[0] in laboratory | tests:
                yield f"{module} imports {name}, which only measures or tests"
            ours = any(name == root or name.startswith(root + ".") for root in NEUTRAL)
            if module.startswith(NEUTRAL) and name.startswith("sglang") and not ours:
                yield f"{module} imports {name} of SGLang; only mamba_radix/ and plugins/ may"


def main() -> int:
    """0 if all holds; 1 with a line for each import that does not."""
    benchmark = ROOT / "benchmark" / "marconi"
    folders = [path for path in (ROOT / "test" / "srt").iterdir() if path.is_dir()]
    laboratory, tests = top_level_names(benchmark), top_level_names(*folders)
    wrong = list(wrong_imports(PACKAGE, laboratory, tests))
    for path in sorted(benchmark.rglob("*.py")):
        bad = [name for name in imported(path) if name.partition(".")[0] in tests - laboratory]
        wrong += [f"{path.relative_to(ROOT)} imports {name} of the tests" for name in bad]
    for line in wrong:
        print(line, file=sys.stderr)
    sglang = types.ModuleType("sglang")
    sglang.__path__ = [str(PACKAGE)]
    sys.modules["sglang"] = sglang
    from importlinter.cli import lint_imports

    broken = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    return int(bool(wrong) or broken != 0)


if __name__ == "__main__":
    sys.exit(main())
