"""Starts what serves a launch, one server or a prefill server and a decode server, and asks it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from live.server_api import flush_cache
from live.servers import OFFLINE, START_SECONDS, free_port, run_in_group

from launches import mooncake
from launches.listed import Launch

#: Room for about a dozen prompts: every few requests evict.
POOLS = (
    *("--max-total-tokens", "4096", "--max-running-requests", "4"),
    *("--max-mamba-cache-size", "24", "--context-length", "4096"),
)
#: Tells the CPU platform to schedule as SGLang does by default.
OVERLAP = {"SGLANG_CPU_REFERENCE_OVERLAP": "1"}
HOST = "127.0.0.1"
SECONDS = 600


class Ended(RuntimeError):
    """A server ended, or did not answer in time; the message is its log."""


@dataclass(frozen=True)
class Served:
    """What serves a launch.

    Attributes:
        urls: of the server, or of the prefill server and the decode server.
        logs: of the same.
        bootstrap_port: where the decode server finds the prefill server, if there are two.
    """

    urls: tuple[str, ...]
    logs: tuple[Path, ...]
    bootstrap_port: int

    def ask(self, prompt: Sequence[int], tokens: int, rid: str | None = None) -> requests.Response:
        """The answer to a prompt, continued greedily; of two servers the decode server's.

        Both get the request at once, as a router sends it.
        """
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        payload: dict[str, Any] = {"input_ids": list(prompt), "sampling_params": sampling}
        payload["rid"] = rid
        if len(self.urls) > 1:
            payload |= {"bootstrap_host": HOST, "bootstrap_port": self.bootstrap_port}
            payload |= {"bootstrap_room": random.getrandbits(62)}

        def post(url: str) -> requests.Response:
            return requests.post(f"{url}/generate", json=payload, timeout=SECONDS)

        with ThreadPoolExecutor(len(self.urls)) as at_once:
            return list(at_once.map(post, self.urls))[-1]

    def cancel(self, rid: str) -> None:
        """Cancel a request, wherever it is."""
        for url in self.urls:
            requests.post(f"{url}/abort_request", json={"rid": rid}, timeout=SECONDS)

    def flush(self) -> None:
        """Empty the prefix caches."""
        for url in self.urls:
            flush_cache(url)


@contextmanager
def serve(launch: Launch, model: Path, policy: Sequence[str]) -> Iterator[Served]:
    """Start what serves a launch.

    A decode server gets the policy's flags where it has a prefix cache.

    Raises:
        Ended: it did not start.
    """
    bootstrap_port = free_port()
    flags = [(*launch.flags, *policy)]
    if launch.decode:
        flags[0] += ("--disaggregation-bootstrap-port", str(bootstrap_port))
        flags.append((*launch.decode, *(policy if launch.decode_caches else ())))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marconi-matrix-")))
        storage = {"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(folder)}
        if launch.stores_in_mooncake:
            storage |= stack.enter_context(mooncake.store(folder))
        stack.enter_context(_environment({**OFFLINE, **OVERLAP, **storage}))
        urls, logs, processes = [], [], []
        for number, its_flags in enumerate(flags):
            port = free_port()
            command = (
                *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)),
                *("--host", HOST, "--port", str(port), "--sleep-on-idle"),
                *(*POOLS, *its_flags),
            )
            urls.append(f"http://{HOST}:{port}")
            logs.append(folder / f"server-{number}.log")
            processes.append(stack.enter_context(run_in_group(command, logs[-1])))
        deadline = time.monotonic() + START_SECONDS
        for url, log, process in zip(urls, logs, processes, strict=True):
            _wait(url, log, process, deadline)
        yield Served(tuple(urls), tuple(logs), bootstrap_port)


def _wait(url: str, log: Path, process: subprocess.Popen[bytes], deadline: float) -> None:
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise Ended(log.read_text(errors="replace"))
        with suppress(requests.RequestException):
            if requests.get(url + "/health", timeout=5).ok:
                return
        time.sleep(0.25)


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
