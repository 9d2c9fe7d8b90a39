"""How busy other programs kept this machine meanwhile: times measured beside them mean little."""

from __future__ import annotations

import time
from typing import Self

import psutil

#: Cores' worth of foreign work from which on a report warns.
WORTH_A_WARNING = 0.2


class ForeignLoad:
    """Counts CPU time that neither this process nor its children used, from the start on.

    Attributes:
        cores: what others used on average, in cores; known when the ``with`` block has ended.
    """

    def __init__(self) -> None:
        self.cores = 0.0

    def __enter__(self) -> Self:
        self._start, self._before = time.monotonic(), _foreign_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._start
        self.cores = max(_foreign_seconds() - self._before, 0.0) / max(seconds, 1e-9)

    @property
    def is_busy(self) -> bool:
        """Others used so much that times are not to be trusted."""
        return self.cores >= WORTH_A_WARNING

    def __str__(self) -> str:
        count = psutil.cpu_count() or 1
        if not self.is_busy:
            return f"Other programs used {self.cores:.1f} of {count} cores."
        return (
            f"OTHER PROGRAMS USED {self.cores:.1f} of {count} cores meanwhile: take no times or "
            "rates from this run; hits and FLOPs saved stand."
        )


def _foreign_seconds() -> float:
    """CPU seconds of the whole machine less those of this process and all that it started."""
    whole = psutil.cpu_times()
    busy = sum(whole) - whole.idle - whole.iowait - whole.guest - whole.guest_nice
    root = psutil.Process()
    own = root.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in root.children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return float(busy - total)
