"""The rows behind every figure of the documentation.

    python benchmark/marconi/results.py run [PART ...]     measure again, go on where it stopped
    python benchmark/marconi/results.py pages [--check]    tables, figures and pictures of all pages
    python benchmark/marconi/results.py stale              which rows are older than their code
    python benchmark/marconi/results.py ids [WORD ...]     what a page can quote

Rows are in ``results/PART.jsonl``. A page quotes them between ``<!-- table: NAME -->`` and
``<!-- end table -->``, or ``<!-- figure: ID.KEY:FORMAT -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rows import pages
from rows.age import ages
from rows.part import TRACES
from rows.parts import PARTS
from rows.pictures import drawn
from rows.running import Place, RunFailed, collect, folder_of, run_part
from rows.sources import NoHistory, Sources
from rows.store import RowErrors, Rows, read_rows
from rows.summary import with_summaries

ROOT = Path(__file__).resolve().parents[3]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was asked; 1 where a page differs, a row is unusable or a command failed."""
    options = parse_arguments(argv)
    try:
        return int(options.act(options))
    except RowErrors as error:
        print(error, file=sys.stderr)
    except (RunFailed, NoHistory, ValueError, OSError) as error:
        print(f"results.py: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nStopped; what was finished is kept.", file=sys.stderr)
        return 130
    return 1


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    actions = parser.add_subparsers(required=True, metavar="WHAT")

    run = actions.add_parser("run", help="measure parts again")
    run.add_argument("parts", nargs="*", metavar="PART", help="by default all; see --list")
    run.add_argument("--list", action="store_true", help="the parts and their minutes")
    run.add_argument(
        "--traces", type=Path, default=Path(TRACES), help="folder of the traces (default: traces)"
    )
    run.add_argument("--only", nargs="+", default=[], metavar="TRACE", help="of parts by trace")
    run.add_argument("--jobs", type=int, default=1, help="simulations at a time")
    run.add_argument(
        "--so-far", action="store_true", help="run nothing, make rows of what is finished"
    )
    run.set_defaults(act=_run)

    written = actions.add_parser("pages", help="write tables, figures and pictures into pages")
    written.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    written.set_defaults(act=_pages)

    stale = actions.add_parser("stale", help="which rows are older than their code")
    stale.set_defaults(act=_stale)

    ids = actions.add_parser("ids", help="rows and keys that a page can quote")
    ids.add_argument("words", nargs="*", help="that an id must contain")
    ids.set_defaults(act=_ids)
    return parser.parse_args(argv)


def _rows(options: argparse.Namespace) -> Rows:
    return with_summaries(read_rows(options.root / "results"))


def _sources(root: Path) -> Sources:
    return Sources(root, root / ".cache" / "results" / "code.json")


def _run(options: argparse.Namespace) -> int:
    unknown = sorted(set(options.parts) - PARTS.keys())
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}; allowed are {', '.join(PARTS)}")
    chosen = [PARTS[name] for name in options.parts or PARTS]
    if options.list:
        for part in chosen:
            quiet = ", alone on the machine" if part.needs_quiet else ""
            print(f"{part.name:<17} {part.minutes:>4g} min{quiet}: {part.answers}")
        print(f"{'all':<17} {sum(part.minutes for part in chosen):>4g} min")
        return 0
    place = Place(
        root=options.root,
        rows=options.root / "results",
        traces=options.traces.resolve(),
        scratch=options.root / ".cache" / "results",
        jobs=options.jobs,
    )
    sources = _sources(options.root)
    for part in chosen:
        if options.so_far:
            folder = folder_of(part, place, sources)
            found = collect(part, place, folder, sources.commit_of(part.code))
        else:
            found = run_part(part, place, sources, options.only)
        print(f"{part.name}: {len(found)} rows", flush=True)
    sources.save()
    return 0


def _pages(options: argparse.Namespace) -> int:
    rows, sources = _rows(options), _sources(options.root)
    age = None if options.check else pages.age_of(rows, PARTS, sources)
    outcomes = [
        *pages.filled(options.root, rows, age),
        *drawn(options.root, rows, check=options.check),
    ]
    sources.save()
    problems = [f"{one.path}: {problem}" for one in outcomes for problem in one.problems]
    differing = [f"{one.path}: {what}" for one in outcomes for what in one.differing]
    for line in problems:
        print(line, file=sys.stderr)
    if options.check:
        for line in differing:
            print(f"{line} differs from the rows", file=sys.stderr)
        if differing:
            print("`make results-pages` writes what the rows say", file=sys.stderr)
        return int(bool(problems or differing))
    for outcome in outcomes:
        if outcome.differing:
            pages.write(options.root, outcome)
            print(f"{outcome.path}: {len(outcome.differing)} written")
    return int(bool(problems))


def _stale(options: argparse.Namespace) -> int:
    sources = _sources(options.root)
    old = 0
    for age in ages(_rows(options), PARTS, sources):
        if age.changed is None:
            print(f"{age.part}: {age.rows} rows of {age.commit}, which is not in this history")
            old += 1
        elif age.changed:
            old += 1
            files = ", ".join(age.changed[:3])
            if len(age.changed) > 3:
                files += f" and {len(age.changed) - 3} more files"
            print(f"{age.part}: {age.rows} rows of {age.commit} are older than {files}")
    sources.save()
    may_be = f"{old} of the parts' measurements may be older than their code"
    print(may_be if old else "none is older")
    return 0


def _ids(options: argparse.Namespace) -> int:
    for identity, row in _rows(options).by_id.items():
        if all(word in identity for word in options.words):
            print(f"{identity}: {', '.join(_keys(row))}")
    return 0


def _keys(row: Mapping[str, Any], before: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in row.items():
        if key in ("id", "part", "measured"):
            continue
        if isinstance(value, Mapping):
            keys += _keys(value, f"{before}{key}.")
        else:
            keys.append(f"{before}{key}")
    return keys
