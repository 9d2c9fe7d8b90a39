"""Compare the paper's engine with a folder of golden data, run by run.

    python benchmark/marconi/check_golden.py FOLDER

Exit code 0: every run is equal; 1: a run differs or a file cannot be read; 2: nothing to compare.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from paper.golden import FileReport, GoldenError, check_result_file, result_files


def main(argv: Sequence[str] | None = None) -> int:
    """Print each file's differences, then the totals."""
    options = _parse(argv)
    try:
        files = result_files(options.folder, options.only)
    except GoldenError as error:
        print(error, file=sys.stderr)
        return 2
    reports = []
    for report in _reports(options.folder, files, options.jobs):
        _print(report)
        reports.append(report)
    compared = sum(report.compared for report in reports)
    differ = sum(len(report.differences) for report in reports)
    unreadable = sum(len(report.errors) for report in reports)
    if unreadable:
        print(f"could not be compared: {unreadable} (see above)")
    print(f"runs compared {compared}, runs that differ {differ}")
    return 1 if differ or unreadable or not compared else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="holds traces/ and results/")
    parser.add_argument(
        "--only", metavar="NAME", help="a trace (chat), or one file (chat.corrected)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes; more than 1 needs joblib")
    return parser.parse_args(argv)


def _reports(folder: Path, files: Sequence[Path], jobs: int) -> Iterator[FileReport]:
    """One report a file, in order, as they are ready."""
    if jobs != 1 and importlib.util.find_spec("joblib") is not None:
        # Optional, so neither the type checker nor a reader without it should need it.
        joblib = importlib.import_module("joblib")
        check = joblib.delayed(check_result_file)
        yield from joblib.Parallel(n_jobs=jobs, return_as="generator")(
            check(folder, file) for file in files
        )
        return
    if jobs != 1:
        print("joblib is not installed: one process", file=sys.stderr)
    for file in files:
        yield check_result_file(folder, file)


def _print(report: FileReport) -> None:
    for line in (*report.errors, *report.differences):
        print(line)
    print(f"{report.name}: {report.compared} runs, {len(report.differences)} differ", flush=True)


if __name__ == "__main__":
    sys.exit(main())
