"""What is measured around each operation of a life: waits for the device, errors, or time."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any, Protocol

import torch

from gpu.host_reads import reads_noted

#: What PyTorch says of each call that waits for the device, in its sync debug mode.
SYNCHRONIZED = "called a synchronizing CUDA operation"


class Meter(Protocol):
    """Measures operations by name; one inside another is part of that."""

    def measured(self, operation: str) -> AbstractContextManager[None]: ...


class Counts:
    """Calls and waits, by operation; how a wait is seen is a subclass's.

    Under one memory SGLang's allocator reads on the host where it compacts, which is as often as
    what was evicted leaves holes. Those waits are counted apart, as ``compactions``.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.compactions: Counter[str] = Counter()
        self._operation = ""

    def a_call(self, operation: str) -> float:
        """Waits a call."""
        return self.waits[operation] / max(self.calls[operation], 1)

    def waiting(self) -> set[str]:
        """Operations in which anything waited."""
        return set(self.waits + self.compactions)

    def _note(self) -> None:
        counter = self.compactions if _compacts() else self.waits
        counter[self._operation] += 1

    def _begin(self, operation: str) -> None:
        self._operation = operation
        self.calls[operation] += 1


class HostReadCounts(Counts):
    """On a CPU: each read of a tensor's numbers, which would wait on a GPU."""

    @contextmanager
    def measured(self, operation: str) -> Iterator[None]:
        self._begin(operation)
        with reads_noted(self._note):
            yield


class CudaWaitCounts(Counts):
    """On a GPU: each call that PyTorch's sync debug mode warns of.

    From Python's calls these are warnings of Python. What an extension calls itself, such as the
    Rust tree core, PyTorch warns of on the standard error stream of the process.
    """

    @contextmanager
    def measured(self, operation: str) -> Iterator[None]:
        self._begin(operation)
        with tempfile.TemporaryFile("w+") as printed, warnings.catch_warnings():
            warnings.simplefilter("always")
            shown = warnings.showwarning

            def show(message: Warning | str, *rest: Any, **options: Any) -> None:
                if SYNCHRONIZED in str(message):
                    self._note()
                else:
                    shown(message, *rest, **options)

            warnings.showwarning = show
            try:
                with _stderr_to(printed.fileno()), sync_debug("warn"):
                    yield
            finally:
                printed.seek(0)
                for line in printed:
                    if SYNCHRONIZED in line:
                        self.waits[operation] += 1
                    else:
                        sys.stderr.write(line)


class CudaErrors:
    """On a GPU: a call that waits raises.

    Args:
        unless: operations in which something is known to wait.
    """

    def __init__(self, unless: Collection[str]) -> None:
        self._unless = unless

    def measured(self, operation: str) -> AbstractContextManager[None]:
        return nullcontext() if operation in self._unless else sync_debug("error")


class Clock:
    """Microseconds of the host until a call returns; the device is idle before, nobody waits after.

    Args:
        device: that calls put their work on.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.taken: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def measured(self, operation: str) -> Iterator[None]:
        if self._on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter_ns()
        yield
        self.taken[operation].append((time.perf_counter_ns() - start) / 1000)


@contextmanager
def sync_debug(mode: str) -> Iterator[None]:
    """PyTorch's sync debug mode, which is one setting for the whole process."""
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _compacts() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "_flush" and code.co_filename.endswith("unified_sub_pool.py"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _stderr_to(descriptor: int) -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
