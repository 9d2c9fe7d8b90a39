"""Builds the fork: SGLang of another release with Marconi's eviction patched in.

python patches/build_fork.py --wheel dist              # sglang-0.5.4+marconi.0.1.0-py3-none-any.whl
python patches/build_fork.py --install .venv/bin/python     # or patch an environment in place
python patches/build_fork.py --uninstall .venv/bin/python   # and take it back, byte for byte
python patches/build_fork.py --tree ~/sglang                # or patch a checkout of the tag
python patches/build_fork.py --series patches/v0.5.23 --tree ~/sglang    # another release
python patches/build_fork.py --locate ~/sglang              # where the hunks belong in another one
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import fork_environment
import fork_wheel
from series import SeriesError, load_series

PATCHES = Path(__file__).resolve().parent
REPOSITORY = PATCHES.parent


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build SGLang with Marconi's eviction patched in.")
    parser.add_argument("--series", type=Path, default=PATCHES / "v0.5.4", help="its directory")
    parser.add_argument("--base", type=Path, help="release's wheel; default: the package index")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--wheel", type=Path, metavar="DIRECTORY", help="build a wheel")
    what.add_argument("--install", metavar="PYTHON", help="patch this interpreter's SGLang")
    what.add_argument("--uninstall", metavar="PYTHON", help="restore this interpreter's SGLang")
    what.add_argument("--tree", type=Path, metavar="CHECKOUT", help="patch a git checkout")
    what.add_argument("--locate", type=Path, metavar="CHECKOUT", help="find the hunks' places")
    options = parser.parse_args(argv)
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    try:
        series = load_series(options.series, REPOSITORY / "python")
        if options.wheel:
            print(fork_wheel.build_wheel(series, version, options.wheel, options.base))
        elif options.install:
            print(f"patched {fork_environment.install(series, options.install, version)}")
        elif options.uninstall:
            print(f"restored {fork_environment.uninstall(series, options.uninstall)}")
        elif options.locate:
            print("\n".join(series.locate(options.locate / "python")))
        else:
            fork_environment.patch_checkout(series, options.tree)
            print(f"patched {options.tree}")
    except SeriesError as error:
        print(f"build_fork: {error}; nothing was changed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
