"""Runs SGLang's own tests of a checkout with stock and with ours, and says what differs.

    python benchmark/marconi/peer_tests.py CHECKOUT

CHECKOUT is a working tree of SGLang at the installed release: its package does not hold its tests.
Of them those that concern the cache, its tree, sessions, events, host tier and scheduling are run:
a process for each file, once with stock and once for each policy. Nothing is fetched, copied or
written there. Tests that stock does not pass here are counted apart; on a CPU these are many.

Under policy 1 every test must end as with stock; under 2 and 3 one may differ that asserts whom LRU
would evict. The exit status is 1 if one differs under policy 1, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_REGISTERED = Path("test", "registered")
#: Files of the checkout that are run, where they are there.
PATTERNS = (
    "unit/mem_cache/test_*unified*.py",
    "unit/mem_cache/test_*tri_*.py",
    "unit/mem_cache/test_*mamba*.py",
    "unit/mem_cache/test_*session*.py",
    "unit/mem_cache/test_*hicache*.py",
    "unit/mem_cache/test_*evict*.py",
    "unit/disaggregation/test_kv_events*.py",
    "unit/managers/test_*mamba*.py",
    "unit/managers/test_*session*.py",
    "unit/managers/test_schedule_policy*.py",
    "unit/managers/test_prefill_adder*.py",
    "radix_cache/test_*unit*.py",
)
_LABORATORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Outcome:
    """What came of a test: "passed", "skipped" or "failed", and the last line of why."""

    result: str
    error: str = ""


@dataclass
class Run:
    """One file under one cache.

    Attributes:
        outcomes: by the test's name.
        caches: how many caches of ours its tests made.
        broke: why the process ended before all tests did; empty if it did not.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    caches: int = 0
    broke: str = ""

    @property
    def passed(self) -> list[str]:
        return [test for test, outcome in self.outcomes.items() if outcome.result == "passed"]


@dataclass(frozen=True)
class Difference:
    """A test that stock passes and ours does not."""

    policy: int
    test: str
    error: str


def files_of(checkout: Path) -> list[Path]:
    """The tests of a checkout that are to be run, relative to it.

    Raises:
        ValueError: it is no checkout of SGLang, or has none of them.
    """
    if not (checkout / _REGISTERED).is_dir():
        raise ValueError(f"{checkout} is no checkout of SGLang: it has no folder {_REGISTERED}")
    found = {file for pattern in PATTERNS for file in (checkout / _REGISTERED).glob(pattern)}
    if not found:
        raise ValueError(f"{checkout / _REGISTERED} has no test that concerns the cache")
    return sorted(file.relative_to(checkout) for file in found)


def run_file(
    checkout: Path, file: Path, policy: int | None, core: str = "python", seconds: float = 1800
) -> Run:
    """Run the tests of one file, with stock where ``policy`` is ``None``."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder, "outcomes")
        command = [sys.executable, "-P", "-m", "pytest", "-p", "peer.caches", "--quiet"]
        command += ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(checkout)]
        command += ["--outcomes", str(lines), str(file)]
        if policy is not None:
            command += ["--marconi-policy", str(policy)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(_LABORATORY),
            "PYTHONDONTWRITEBYTECODE": "1",
            "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND": core,
        }
        try:
            ended = subprocess.run(
                command,
                cwd=checkout,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return read(lines, f"not done after {seconds:.0f} seconds")
        # 5: nothing was collected, 2: a file could not be, which is an outcome too.
        if ended.returncode in (0, 1, 2, 5):
            return read(lines)
        said = (ended.stdout.strip().splitlines() or [""])[-1]
        return read(lines, f"pytest ended with status {ended.returncode}: {said}")


def read(lines: Path, broke: str = "") -> Run:
    """What the plugin wrote of one run: of a test, the worst that was said."""
    run = Run(broke=broke)
    order = ("passed", "skipped", "failed")
    for text in lines.read_text(encoding="utf-8").splitlines() if lines.exists() else ():
        line = json.loads(text)
        if "cache" in line:
            run.caches += 1
            continue
        before = run.outcomes.get(line["test"])
        if before is None or order.index(before.result) < order.index(line["outcome"]):
            run.outcomes[line["test"]] = Outcome(line["outcome"], line["error"])
    return run


def differences(stock: Run, ours: Run, policy: int) -> Iterator[Difference]:
    """Tests that stock passes, and that end otherwise under ``policy``."""
    for test in stock.passed:
        outcome = ours.outcomes.get(test, Outcome("not run", ours.broke))
        if outcome.result != "passed":
            yield Difference(policy, test, f"{outcome.result}: {outcome.error}")


def row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of files and a line a difference; see the module for the exit status."""
    options = _parse(argv)
    try:
        files = files_of(options.checkout)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    heads = ["test file", "tests", "stock passes", "caches of ours"]
    heads += [f"same under {policy}" for policy in options.policies]
    print(row(heads), row(["---"] * len(heads)), sep="\n", flush=True)
    found: list[Difference] = []
    apart: list[str] = []
    tests = 0
    for file in files:
        stock = run_file(options.checkout, file, None, options.core)
        runs = {
            policy: run_file(options.checkout, file, policy, options.core)
            for policy in (options.policies if stock.passed else ())
        }
        differing = {n: list(differences(stock, run, n)) for n, run in runs.items()}
        found += [one for several in differing.values() for one in several]
        apart += _apart(stock)
        tests += len(stock.outcomes)
        passed = len(stock.passed)
        caches = max((run.caches for run in runs.values()), default=0)
        same = [passed - len(differing.get(policy, ())) for policy in options.policies]
        name = file.relative_to(_REGISTERED)
        print(row([name, len(stock.outcomes), passed, caches, *same]), flush=True)
    for one in found:
        print(f"policy {one.policy}: {one.test}: {one.error}")
    for line in apart if options.apart else ():
        print(line)
    if not tests:
        print(f"nothing was collected from {options.checkout}", file=sys.stderr)
        return 2
    return int(any(one.policy == 1 for one in found))


def _apart(stock: Run) -> Iterator[str]:
    """Tests that say nothing here, because stock does not pass them either."""
    for test, outcome in stock.outcomes.items():
        if outcome.result != "passed":
            yield f"apart: {test}: {outcome.result}: {outcome.error}"
    if stock.broke:
        yield f"apart: {stock.broke}"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="peer_tests.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkout", type=Path, help="folder of a checkout of SGLang")
    parser.add_argument("--policies", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument(
        "--core",
        choices=("python", "rust"),
        default="python",
        help="tree core that SGLang is told to take; most of its tests look inside the Python one",
    )
    parser.add_argument(
        "--apart", action="store_true", help="also list the tests that stock does not pass"
    )
    options = parser.parse_args(argv)
    options.checkout = options.checkout.resolve()
    return options
