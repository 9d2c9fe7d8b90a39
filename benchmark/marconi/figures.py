"""Figures and one HTML report from the simulator's result rows.

    python benchmark/marconi/figures.py results.jsonl... --out DIR

Writes a PNG and an SVG a figure and ``report.html``, which embeds them. A figure whose rows are
absent is left out and named; a corrupt line is reported with file and line and skipped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pictures import draw_all, read_rows, write_report


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", help="result rows (JSON lines)")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and report")
    options = parser.parse_args(argv)
    for path in options.results:
        if not path.is_file():
            parser.error(f"results is {str(path)!r}; allowed are existing files of result rows")
    rows, problems = read_rows(options.results)
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    if not rows:
        sys.exit(f"no result row in {', '.join(map(str, options.results))}")
    pictures, absent = draw_all(rows)
    names = [path.name for path in options.results]
    report = write_report(options.out, rows, pictures, absent, problems, names)
    for picture in pictures:
        print(f"drawn: {picture.key}")
    for one in absent:
        print(f"left out: {one.key}; it needs {one.needs}")
    print(report)


if __name__ == "__main__":
    main()
