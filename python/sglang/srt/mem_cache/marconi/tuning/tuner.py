"""Looks after the tuner's process: starts it, again if it fails, and passes on what it answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from sglang.srt.mem_cache.marconi.tuning import wire
from sglang.srt.mem_cache.marconi.tuning.process import TunerFailed, TunerProcess
from sglang.srt.mem_cache.marconi.tuning.retrospect import Verdict
from sglang.srt.mem_cache.marconi.tuning.worker import WorkerSetup

logger = logging.getLogger(__name__)

#: Requests to wait before a failed process is started again; doubled with every failure since the
#: last answer.
RESTART_AFTER = 64
MAX_RESTART_AFTER = 65_536


class Answer(IntEnum):
    """What is known of a window that has ended."""

    PENDING = 0
    CHOSEN = 1
    NONE = 2


@dataclass
class TunerHealth:
    """Counters of one tuner since the server started."""

    answers: int = 0
    failures: int = 0
    restarts: int = 0
    cpu_seconds: float = 0.0


class Tuner:
    """One process, or none for the moment; no method raises or waits.

    Args:
        setup: makes a process's setup, given the index of the weight in force, if any.
        seconds: longest wait for an answer.
    """

    def __init__(self, setup: Callable[[int | None], WorkerSetup], seconds: float) -> None:
        self._setup = setup
        self._seconds = seconds
        self.health = TunerHealth()
        self.verdict: Verdict | None = None
        self._process: TunerProcess | None = None
        self._remains: list[TunerProcess] = []
        self._current: int | None = None
        self._window = 0
        self._seen = 0
        self._asked_at: float | None = None
        self._waits = 0
        self._failures_in_a_row = 0
        self._start()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def backlog(self) -> int:
        return 0 if self._process is None else self._process.backlog

    def send(self, frame: bytes) -> None:
        """Pass on one frame of the stream, if there is a process to take it."""
        if self._process is not None:
            try:
                self._process.send(frame)
            except TunerFailed as failure:
                self._failed(str(failure))

    def count_request(self) -> None:
        """A request was counted: a failed process may be started again."""
        self._remains = [process for process in self._remains if not process.reaped()]
        self._seen += 1
        if self._process is None:
            self._waits -= 1
            if self._waits <= 0:
                self.health.restarts += 1
                self._start()

    def look_back(self, requests: int) -> None:
        """A window has ended.

        Args:
            requests: how many a process must have followed since it was started to be asked.
        """
        self._window += 1
        self._asked_at = None
        if self._process is not None and self._seen >= requests:
            self._asked_at = time.monotonic()
            self.send(wire.look_back(self._window))

    def answer(self) -> Answer:
        """What became of the window that ended last."""
        if self._process is None or self._asked_at is None:
            return Answer.NONE
        try:
            line = self._process.answer()
            if line is None:
                if time.monotonic() - self._asked_at > self._seconds:
                    raise TunerFailed(f"no answer within {self._seconds:g} seconds")
                return Answer.PENDING
            self.verdict, self.health.cpu_seconds = wire.read_answer(line, self._window)
        except (TunerFailed, ValueError) as failure:
            self._failed(str(failure))
            return Answer.NONE
        self._asked_at = None
        self.health.answers += 1
        self._failures_in_a_row = 0
        self._current = self.verdict.chosen
        return Answer.CHOSEN

    def stop(self) -> None:
        """End the process for good."""
        if self._process is not None:
            self._process.kill()
            self._process.reaped()
            self._process = None
        self._waits = 1 << 62

    # -- internals

    def _start(self) -> None:
        self._seen = 0
        try:
            self._process = TunerProcess(self._setup(self._current))
        except (OSError, TunerFailed) as error:
            self._failed(f"it cannot be started: {error!r}")

    def _failed(self, reason: str) -> None:
        if self._process is not None:
            self._process.kill()
            self._remains.append(self._process)
            self._process = None
        self._waits = min(RESTART_AFTER << self._failures_in_a_row, MAX_RESTART_AFTER)
        self._failures_in_a_row += 1
        self.health.failures += 1
        if self.health.failures == 1:
            logger.warning(
                "Marconi: the tuner failed, serving goes on as it was; it is started again after "
                "%d requests, further failures are counted in /server_info: %s",
                self._waits,
                reason,
            )
