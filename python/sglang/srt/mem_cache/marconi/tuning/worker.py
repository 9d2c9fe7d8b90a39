"""The tuner's process: follows the stream on stdin, answers on stdout, records. Run as a script.

It takes from SGLang nothing but this package, so that neither torch nor a GPU is touched: a bare
module stands for ``sglang``, whose ``__init__`` would import all of it.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.mem_cache.marconi.config import MarconiConfig
    from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
    from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowShape

_PACKAGE = "sglang"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class WorkerSetup:
    """What the process needs to know.

    Attributes:
        cost: the served model's :class:`CostModel`.
        config: the operator's options; the weight may be left to this process.
        current: index of the weight in force, ``None`` if nothing was chosen yet.
        memory_bytes: bound of its address space.
    """

    shape: ShadowShape
    cost: CostModel
    config: MarconiConfig
    current: int | None
    memory_bytes: int


def main() -> None:
    """Serve until stdin ends."""
    os.nice(19)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    package = types.ModuleType(_PACKAGE)
    package.__path__ = [str(Path(__file__).resolve().parents[4])]
    sys.modules[_PACKAGE] = package
    from sglang.srt.mem_cache.marconi.tuning import wire

    out = sys.stdout.buffer
    try:
        _follow(wire)
    except BaseException as error:
        out.write(wire.failure(repr(error)))
        out.flush()
        raise SystemExit(1) from None


def _follow(wire: types.ModuleType) -> None:
    from sglang.srt.mem_cache.marconi.tuning.recorder import Recorder
    from sglang.srt.mem_cache.marconi.tuning.retrospect import Retrospect
    from sglang.srt.mem_cache.marconi.tuning.worker import WorkerSetup

    setup = pickle.loads(wire.read_setup(sys.stdin.buffer))
    assert isinstance(setup, WorkerSetup)
    resource.setrlimit(resource.RLIMIT_AS, (setup.memory_bytes, setup.memory_bytes))
    retrospect = recorder = None
    if setup.config.tunes:
        retrospect = Retrospect(setup.shape, setup.cost, setup.config, current=setup.current)
    if setup.config.marconi_record is not None:
        recorder = Recorder(Path(setup.config.marconi_record), setup.shape.block_tokens)
    for event in wire.read_events(sys.stdin.buffer):
        if not isinstance(event, wire.LookBack):
            if recorder is not None:
                recorder.follow(event)
            if retrospect is not None:
                retrospect.follow(event)
        elif retrospect is not None:
            verdict = retrospect.look_back()
            sys.stdout.buffer.write(wire.answer(event.window, verdict, time.process_time()))
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
