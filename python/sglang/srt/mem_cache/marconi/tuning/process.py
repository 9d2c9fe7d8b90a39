"""The tuner's process as its parent sees it: nothing here ever waits for it."""

from __future__ import annotations

import fcntl
import os
import pickle
import subprocess
import sys
from contextlib import suppress

from sglang.srt.mem_cache.marconi.tuning import wire, worker
from sglang.srt.mem_cache.marconi.tuning.worker import WorkerSetup

#: Bytes that wait to be written; a process that lets more pile up has stopped reading.
MAX_BACKLOG = 64 << 20
_PIPE_BYTES = 1 << 20
#: Bytes of one answer, far beyond any.
_MAX_ANSWER = 1 << 20


class TunerFailed(RuntimeError):
    """The process is of no further use; the message says why."""


class TunerProcess:
    """A running worker, written to and read from without blocking.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        for descriptor in (self._in, self._out):
            os.set_blocking(descriptor, False)
        with suppress(OSError):
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._backlog = bytearray()
        self._answer = bytearray()
        self.send(wire.setup(pickle.dumps(setup)))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def backlog(self) -> int:
        """Bytes that wait to be written."""
        return len(self._backlog)

    def send(self, frame: bytes) -> None:
        """Pass a frame on, or keep it until the pipe takes it.

        Raises:
            TunerFailed: the process ended, or stopped reading.
        """
        self._backlog += frame
        while self._backlog:
            try:
                written = os.write(self._in, self._backlog)
            except BlockingIOError:
                break
            except OSError as error:
                raise TunerFailed(f"it ended: {self._last_words() or error!r}") from error
            del self._backlog[:written]
        if len(self._backlog) > MAX_BACKLOG:
            raise TunerFailed(f"it leaves {len(self._backlog)} bytes unread")

    def answer(self) -> bytes | None:
        """Its next line, ``None`` if there is none yet.

        Raises:
            TunerFailed: it ended without one, or what it writes is no line.
        """
        self.send(b"")
        ended = self._read()
        line, newline, rest = bytes(self._answer).partition(b"\n")
        if newline:
            self._answer = bytearray(rest)
            return line
        if ended:
            raise TunerFailed("it ended without an answer")
        if len(self._answer) > _MAX_ANSWER:
            raise TunerFailed(f"it wrote {len(self._answer)} bytes and no line")
        return None

    def kill(self) -> None:
        """End it, whatever it does; :meth:`reaped` says when it is gone."""
        with suppress(OSError):
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()

    def reaped(self) -> bool:
        """Whether a killed process is off the process table."""
        return self._process.poll() is not None

    def _read(self) -> bool:
        """Read what is there; ``True`` at the end of the stream."""
        while len(self._answer) <= _MAX_ANSWER:
            try:
                data = os.read(self._out, 1 << 16)
            except BlockingIOError:
                return False
            except OSError:
                return True
            if not data:
                return True
            self._answer += data
        return False

    def _last_words(self) -> str:
        self._read()
        return bytes(self._answer[-300:]).decode(errors="replace").strip()
