"""Does any operation of ours wait for the GPU where stock's does not, and how long does it take?

    python benchmark/marconi/gpu_check.py

Caches of stock and ours serve the same requests over small pools on the device: SGLang's own
requests, pools and tree cores, without a model, so that all between two forwards is there and
nothing else. One table has a row for each operation and cache of ours:

- *waits*: calls that wait for the device, of all calls, by PyTorch's sync debug mode; on a CPU,
  reads of a tensor's numbers, each of which would wait on a GPU;
- *µs*: what the host takes until the call returns, median; the device is idle when the call begins,
  and nobody waits for it at the end. The caches take turns, life by life.

Stock is the cache on the same tree core, or in one memory. *evict, view lost* is what LRU takes
after a lost event of the tree; *counters* and *adopt a weight* stock does not have. Where stock and
ours never waited, all is done once more with waits as errors.

The exit status is 1 if an operation of ours waits more often a call than stock's, or if a cache
could not be measured. Not compared are waits where SGLang's allocator of one memory compacts: how
often it does follows from what was evicted. They are counted below the table.

It needs PyTorch, SGLang's Python files and its Rust tree core: what ``make setup`` installs, whose
PyTorch can use CUDA. No kernels of SGLang and no model are needed: SGLang is imported as on a
machine without a GPU, so that it looks for none, and its pools alone are put on the device.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from gpu.meters import Clock, Counts, CudaErrors, CudaWaitCounts, HostReadCounts, Meter

RUST, PYTHON, SHARED = "stock, Rust core", "stock, Python core", "stock, one memory"
STOCK: dict[str, dict[str, Any]] = {
    RUST: {"core": "rust"},
    PYTHON: {"core": "python"},
    SHARED: {"core": "python", "elastic": True},
}
_STATES = {"options": {"marconi_evict_pools": "state"}}
_JUDICIOUS = {"options": {"marconi_admission": "judicious"}}
_TUNED = {"policy": 2, "tunes": True}
#: Caches of ours by name, each with the stock that it stands beside.
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"policy {n}, Rust core": (RUST, {"policy": n}) for n in (1, 2, 3)},
    "policy 2 on states, Rust core": (RUST, {"policy": 2, **_STATES}),
    "policy 2 tuned, recorded, Rust core": (RUST, _TUNED),
    **{f"policy {n}, Python core": (PYTHON, {"policy": n}) for n in (1, 2, 3)},
    "policy 2 on states, Python core": (PYTHON, {"policy": 2, **_STATES}),
    "policy 2 tuned, recorded, Python core": (PYTHON, _TUNED),
    **{f"policy {n}, judicious": (PYTHON, {"policy": n, **_JUDICIOUS}) for n in (1, 2, 3)},
    "policy 3, one memory": (SHARED, {"policy": 3}),
}
COLUMNS = ("operation", "cache", "waits, stock", "waits, ours", "µs, stock", "µs, ours", "ratio")


@dataclass
class Measured:
    """What one cache did.

    Attributes:
        counts: ``None`` if it could not be measured.
        caught: errors that ours caught, to go on with LRU.
        taken: microseconds by operation, of all timed lives.
    """

    counts: Counts | None = None
    caught: list[str] = field(default_factory=list)
    taken: dict[str, list[float]] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_arguments(argv)
    device: torch.device = options.device
    torch.set_num_threads(1)
    print_device(device)
    with sglang_without_gpu(device):
        from lab.cpu_cache import server_context

        from gpu import life

    stocks = {name: OURS[name][0] for name in options.caches}
    with quiet(), server_context(chunk=64), tempfile.TemporaryDirectory() as folder:
        check = Check(stocks, life.lived, device, options.requests, Path(folder) / "requests.jsonl")
        check.count()
        if device.type == "cuda":
            check.raise_on_waits()
        check.time(options.repeats)
    measured, problems = check.measured, check.problems
    pairs = {name: (measured[name], measured[stock]) for name, stock in stocks.items()}
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * 2 + "|---:" * (len(COLUMNS) - 2) + "|")
    for line in rows(pairs):
        print(line)
    for line in compactions(measured):
        print(line)
    problems += findings(pairs)
    for line in dict.fromkeys(problems):
        print(f"PROBLEM: {line}")
    if not problems:
        print("No operation of ours waits more often than stock's.")
    return 1 if problems else 0


class Check:
    """All lives of all caches.

    Args:
        stocks: caches of ours by name, and the stock that each stands beside.
        lived: see ``life.lived``; that module loads SGLang.
        record: where caches that tune record their requests.

    Attributes:
        problems: caches that could not be measured, in words.
    """

    def __init__(
        self,
        stocks: Mapping[str, str],
        lived: Callable[..., list[str]],
        device: torch.device,
        requests: int,
        record: Path,
    ) -> None:
        self._stocks, self._lived = stocks, lived
        self._device, self._requests, self._record = device, requests, record
        self._arguments = {stock: STOCK[stock] for stock in stocks.values()}
        self._arguments |= {
            name: {**STOCK[stock], **OURS[name][1]} for name, stock in stocks.items()
        }
        self.measured = {name: Measured() for name in self._arguments}
        self.problems: list[str] = []

    def count(self) -> None:
        """One life of each, with waits counted."""
        for name, measured in self.measured.items():
            counts = new_counts(self._device)
            if self._live(name, counts):
                measured.counts = counts

    def raise_on_waits(self) -> None:
        """One life more of each of ours, in which what did not wait must not."""
        for name, stock in self._stocks.items():
            ours, beside = self.measured[name].counts, self.measured[stock].counts
            if ours is not None and beside is not None:
                self._live(name, CudaErrors(ours.waiting() | beside.waiting()))

    def time(self, repeats: int) -> None:
        """The caches in turn, so often; a cache that failed before is left out."""
        order = random.Random(1)
        names = [name for name, measured in self.measured.items() if measured.counts is not None]
        for seed in range(repeats):
            for name in order.sample(names, len(names)):
                clock = Clock(self._device)
                self._live(name, clock, seed)
                for operation, taken in clock.taken.items():
                    self.measured[name].taken.setdefault(operation, []).extend(taken)

    def _live(self, name: str, meter: Meter, seed: int = 0) -> bool:
        """Whether it went well; the other caches go on where it did not."""
        try:
            self.measured[name].caught += self._lived(
                self._arguments[name], self._device, meter, seed, self._requests, self._record
            )
        except Exception as error:
            traceback.print_exc(limit=-4)
            what = type(meter).__name__
            self.problems.append(f"{name} could not be measured ({what}): {error!r}")
            return False
        return True


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to count host reads")
    parser.add_argument("--requests", type=int, default=200, help="of each life")
    parser.add_argument("--repeats", type=int, default=5, help="timed lives of each cache")
    parser.add_argument(
        "--caches", nargs="+", choices=list(OURS), default=list(OURS), metavar="NAME"
    )
    options = parser.parse_args(argv)
    if min(options.requests, options.repeats) < 1:
        parser.error("--requests and --repeats must be at least 1")
    kind, _, number = options.device.partition(":")
    if kind not in ("cuda", "cpu") or (number and not number.isdecimal()):
        parser.error(f"--device is {options.device}; allowed are cuda, cuda:N and cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--device is {options.device}, but PyTorch {torch.__version__} finds no CUDA device "
            "here; --device cpu counts host reads instead"
        )
    # The Rust core takes a CPU without a number, and some of PyTorch's calls no GPU without one.
    options.device = torch.device("cpu" if kind == "cpu" else f"cuda:{int(number or 0)}")
    return options


def print_device(device: torch.device) -> None:
    """Name the device, and see that a wait on it is noticed.

    Raises:
        RuntimeError: this PyTorch does not say what waits.
    """
    name = "CPU"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        name = torch.cuda.get_device_name(device)
    print(f"{name}, PyTorch {torch.__version__}\n", flush=True)
    slot = torch.ones(1, dtype=torch.int64, device=device)
    counts = new_counts(device)
    with counts.measured("read"):
        slot.tolist()
    with counts.measured("copy"):
        slot.clone()
    if not counts.waits["read"] or counts.waits["copy"]:
        raise RuntimeError(f"reads are not seen by PyTorch {torch.__version__} on {device}")


def new_counts(device: torch.device) -> HostReadCounts | CudaWaitCounts:
    return CudaWaitCounts() if device.type == "cuda" else HostReadCounts()


@contextmanager
def sglang_without_gpu(device: torch.device) -> Iterator[None]:
    """Import SGLang as on a machine without a GPU, for where one is visible it needs its kernels.

    The tree, the allocators and the pools' slots are the same PyTorch calls either way.
    """
    if device.type == "cpu":
        yield
        return
    # Neither SGLang's CPU engine nor a CPU platform that is installed is wanted.
    os.environ["SGLANG_USE_CPU_ENGINE"] = "0"
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Log no warning: each life has one of the event that it loses."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def rows(pairs: Mapping[str, tuple[Measured, Measured]]) -> Iterator[str]:
    for name, (ours, stock) in pairs.items():
        if ours.counts is None or stock.counts is None:
            continue
        for operation in ours.counts.calls:
            times = [median(own.taken.get(operation)) for own in (stock, ours)]
            ratio = "" if None in times else f"{times[1] / times[0]:.2f}"  # type: ignore[operator]
            cells = [
                *(waits(own.counts, operation) for own in (stock, ours)),
                *("" if time is None else f"{time:,.1f}" for time in times),
            ]
            yield "| " + " | ".join([operation, name, *cells, ratio]) + " |"


def median(values: Sequence[float] | None) -> float | None:
    return statistics.median(values) if values else None


def waits(counts: Counts | None, operation: str) -> str:
    if counts is None or operation not in counts.calls:
        return ""
    return f"{counts.waits[operation]} of {counts.calls[operation]}"


def compactions(measured: Mapping[str, Measured]) -> Iterator[str]:
    for name, own in measured.items():
        if own.counts is not None and own.counts.compactions:
            times = own.counts.compactions.total()
            yield f"{name}: SGLang's allocator waited {times} times more, to compact."


def findings(pairs: Mapping[str, tuple[Measured, Measured]]) -> Iterator[str]:
    """Where ours waits more often a call than stock, or met an error."""
    for name, (ours, stock) in pairs.items():
        if ours.counts is None or stock.counts is None:
            continue
        for operation in ours.counts.calls:
            a_call, of_stock = ours.counts.a_call(operation), stock.counts.a_call(operation)
            if a_call > of_stock:
                yield f"{name}, {operation}: {a_call:.2g} waits a call, {of_stock:.2g} of stock"
        yield from (f"{name} caught {error}" for error in ours.caught)


if __name__ == "__main__":
    sys.exit(main())
