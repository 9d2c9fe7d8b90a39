"""Starts the servers that the demo compares, and leaves none behind.

Each server leads a process group of its own, which is killed when the ``with`` block ends,
however it ends; the kernel ends it should the demo itself be killed.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from live.server_api import flush_cache, marconi_counters

# A loaded two-core machine takes a minute and a half; a server that fails does so long before.
START_SECONDS = 300.0
LOG_TAIL_LINES = 40
PORTS = range(16000, 31000)
DERIVED_PORT, DERIVED_PORTS = 233, 8
# The whole demo runs from what is on the disk, unless the environment says otherwise.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class ServerFailed(RuntimeError):
    """A server ended or did not become ready in time; the message holds the end of its log."""


@dataclass(frozen=True)
class Pools:
    """Sizes of the two pools that a prefix cache of a hybrid model fills.

    ``kv_tokens`` of all attention layers, ``states`` of all recurrent ones (running requests
    hold some of them), and how many requests may run at once.
    """

    kv_tokens: int
    states: int
    running: int

    def arguments(self) -> tuple[str, ...]:
        """The server's flags for them."""
        return (
            *("--max-total-tokens", str(self.kv_tokens)),
            *("--max-mamba-cache-size", str(self.states)),
            *("--max-running-requests", str(self.running)),
        )


@dataclass(frozen=True)
class Server:
    """A running server."""

    base_url: str
    log_path: Path
    process: subprocess.Popen[bytes]

    def flush_cache(self) -> None:
        """Empty the prefix cache once the last request is on its way out."""
        flush_cache(self.base_url)

    def cpu_seconds(self) -> float:
        """CPU time of all its processes since the start: unlike latency, it knows no neighbours."""
        root = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
        return float(sum(one.user + one.system for one in times))

    def marconi_counters(self) -> Mapping[str, Any] | None:
        """Marconi's counters since the start; None for stock SGLang, which has none."""
        return next(iter(marconi_counters(self.base_url)), None)


@contextmanager
def launch_servers(
    model: Path,
    flags: Mapping[str, Sequence[str]],
    log_dir: Path,
    *,
    port: int = 0,
    on_ready: Callable[[str], None] = lambda name: None,
    start_seconds: float = START_SECONDS,
) -> Iterator[dict[str, Server]]:
    """Start one server for each name in ``flags``, all at once, and yield them when all answer.

    Ports count up from ``port``; 0 takes free ones. ``on_ready`` is told each name that answers.

    Raises:
        ServerFailed: if one of them does not start.
    """
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for index, (name, arguments) in enumerate(flags.items()):
            chosen = port + index if port else free_port()
            command = (
                *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)),
                *("--host", "127.0.0.1", "--port", str(chosen), *arguments),
            )
            log_path = log_dir / f"server-{name}.log"
            process = stack.enter_context(run_in_group(command, log_path))
            servers[name] = Server(f"http://127.0.0.1:{chosen}", log_path, process)
        _wait_for_all(servers, on_ready, start_seconds)
        yield servers


@contextmanager
def run_in_group(command: Sequence[str], log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` in a process group of its own, its output in ``log_path``.

    At the end of the block the group is killed with all that it started.
    """
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**OFFLINE, **os.environ},
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def log_tail(path: Path) -> str:
    """The last lines of a log, under its path."""
    lines = path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join([f"The end of {path}:", *lines])


def free_port() -> int:
    """A port on which nobody listens, nor on those that SGLang derives from it.

    With data parallelism SGLang binds a row of ports from ``ZMQ_TCP_PORT_DELTA`` above the given
    one (its server_args.py), seconds later. All lie below the ports that the kernel hands out to
    whoever asks for any.

    Raises:
        RuntimeError: there is none.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with ExitStack() as stack, suppress(OSError):
            for wanted in (port, *range(port + DERIVED_PORT, port + DERIVED_PORT + DERIVED_PORTS)):
                probe = stack.enter_context(socket.socket())
                probe.bind(("0.0.0.0", wanted))
            return port
    raise RuntimeError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free")


def _wait_for_all(
    servers: Mapping[str, Server], on_ready: Callable[[str], None], seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    waiting = dict(servers)
    while waiting:
        for name, server in list(waiting.items()):
            if server.process.poll() is not None:
                what = f"Server '{name}' ended with code {server.process.returncode}."
                raise ServerFailed(f"{what}\n{log_tail(server.log_path)}")
            with suppress(requests.RequestException):
                if requests.get(server.base_url + "/health", timeout=5).ok:
                    del waiting[name]
                    on_ready(name)
        if time.monotonic() > deadline:
            name, server = next(iter(waiting.items()))
            what = f"Server '{name}' did not answer within {seconds:.0f} s."
            raise ServerFailed(f"{what}\n{log_tail(server.log_path)}")
        time.sleep(0.5)


def _end_with_parent() -> None:
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
