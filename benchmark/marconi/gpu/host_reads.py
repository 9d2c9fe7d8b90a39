"""Sees where code brings a tensor's numbers to the host.

On a GPU each such read waits for all work that is queued there. On a CPU nothing waits, but every
read goes through the same calls of PyTorch, which are seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: Methods that bring a tensor's numbers to the host, beside the operator that reads one number.
READERS = {"tolist", "cpu", "numpy", "__array__", "item"}


class _ScalarReads(TorchDispatchMode):
    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in str(func):
            self._note()
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to_host = getattr(func, "__name__", "") == "to" and "cpu" in map(
            str, (*args[1:], *kwargs.values())
        )
        if getattr(func, "__name__", "") in READERS or to_host:
            self._note()
        return func(*args, **kwargs)


@contextmanager
def reads_noted(note: Callable[[], None]) -> Iterator[None]:
    """Call ``note`` at each read, before it happens."""
    with _Copies(note), _ScalarReads(note):
        yield
