"""``matrix.py``: serves the launches, prints a line each, and appends a record each to a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from launches.listed import ALL, Launch, Outcome
from launches.pairs import pairs
from launches.trial import try_launch

MODELS = Path(".cache/tiny-models")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the launches; 0 if each was served, or refused, as it should be."""
    options = _parse(argv)
    among = pairs() if options.pairs else ALL
    chosen = [one for one in among if not options.rows or one.number in options.rows]
    done = _numbers_in(options.out) if options.out else set()
    failed = 0
    for launch in chosen:
        if launch.number in done:
            continue
        model = options.models / f"{launch.tiny}-float32"
        outcome = try_launch(launch, model, options.requests)
        failed += not outcome.served
        print(line(launch, outcome), flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(outcome)) + "\n")
    return 1 if failed else 0


def line(launch: Launch, outcome: Outcome) -> str:
    """One launch and what came of it."""
    begin = f"{launch.number:2} {launch.typed if launch.model == 'pairs' else launch.model}: "
    if outcome.problems:
        return begin + "FAILED: " + "; ".join(outcome.problems)
    if launch.refused:
        return begin + f"refused: {outcome.message}"
    whose = "policy 1's" if launch.rounds else "all"
    return begin + (
        f"{outcome.core}, {whose} {outcome.equal} answers are stock's, "
        f"cached tokens {outcome.stock_cached} (stock) {outcome.cached}, "
        f"{outcome.evicted_states} states evicted, "
        f"{outcome.under_load} requests at once, {outcome.cancelled} cancelled"
        + (f", {outcome.starved} given up for want of memory" if outcome.starved else "")
        + (f", {outcome.right} of {outcome.drafts} drafts right" if launch.drafts else "")
    )


def _numbers_in(path: Path) -> set[int]:
    if not path.exists():
        return set()
    return {json.loads(text)["number"] for text in path.read_text(encoding="utf-8").splitlines()}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="matrix.py",
        description="Serve launches that operators make, scaled to a CPU, by stock and policy 3.",
    )
    parser.add_argument("--rows", type=int, nargs="+", metavar="N", default=[])
    parser.add_argument(
        "--pairs", action="store_true", help="settings two by two, in place of the launches"
    )
    parser.add_argument(
        "--requests", type=int, default=500, help="sent several at once, after those compared"
    )
    parser.add_argument(
        "--models", type=Path, default=MODELS, help="folder of the tiny models (make setup)"
    )
    parser.add_argument("--out", type=Path, help="append a record a launch; those in it are done")
    options = parser.parse_args(argv)
    for tiny in sorted({f"{launch.tiny}-float32" for launch in ALL}):
        if not (options.models / tiny).is_dir():
            parser.error(f"--models is {options.models}, without {tiny}; make setup writes it")
    known = {launch.number for launch in (pairs() if options.pairs else ALL)}
    if not known.issuperset(options.rows):
        parser.error(f"--rows is {options.rows}; allowed are {min(known)} to {max(known)}")
    if options.requests < 0:
        parser.error(f"--requests is {options.requests}; it must be 0 or more")
    return options


if __name__ == "__main__":
    sys.exit(main())
