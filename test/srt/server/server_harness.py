"""Starts a real SGLang server for a test and leaves nothing behind.

    with launch_server(tiny_model("qwen3-next"), "--tp", "2") as server:
        print(server.generate("hello", max_new_tokens=4)["text"])

The server runs in a process group of its own. It is killed with all its children when the block
ends, however it ends, and the kernel kills it if the test process dies.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import requests
from live.servers import free_port

REPOSITORY = Path(__file__).resolve().parents[3]
CACHE_VARIABLE = "SGLANG_MARCONI_CACHE"
LAUNCHER = (sys.executable, "-m", "sglang.launch_server")
# Enough for a loaded two-core machine; a server that fails does so long before.
START_SECONDS = 300.0
LOG_TAIL_LINES = 60

# Pools for tests: without the second line SGLang sizes them to the machine's memory.
SMALL_POOLS = (
    *("--max-total-tokens", "16384", "--max-running-requests", "8"),
    *("--max-mamba-cache-size", "48", "--context-length", "8192"),
)


class ServerFailed(RuntimeError):
    """The server ended, or did not become ready in time; the message ends with its log."""


@dataclass
class Server:
    """A running server and the requests that tests send to it."""

    base_url: str
    log_path: Path
    process: subprocess.Popen[bytes]
    command: tuple[str, ...]

    def get(self, path: str, timeout: float = 60.0) -> requests.Response:
        """GET; raises on an HTTP error."""
        response = requests.get(self.base_url + path, timeout=timeout)
        response.raise_for_status()
        return response

    def post(self, path: str, payload: Any = None, timeout: float = 600.0) -> requests.Response:
        """POST a JSON payload; raises on an HTTP error, with the answer's text."""
        response = requests.post(self.base_url + path, json=payload, timeout=timeout)
        if not response.ok:
            raise requests.HTTPError(f"{path}: {response.status_code} {response.text}")
        return response

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        max_new_tokens: int = 16,
        *,
        sampling: Mapping[str, Any] | None = None,
        timeout: float = 600.0,
        **fields: Any,
    ) -> Any:
        """Greedy `/generate` for a text, for token ids, or for a batch of either.

        ``sampling`` overrides sampling parameters, further keywords are fields of the request
        (rid=, return_logprob=, logprob_start_len=, ...). Returns the decoded answer.
        """
        parameters = {"temperature": 0, "max_new_tokens": max_new_tokens, "ignore_eos": True}
        payload: dict[str, Any] = {"sampling_params": parameters | dict(sampling or {}), **fields}
        payload["text" if _is_text(prompt) else "input_ids"] = prompt
        return self.post("/generate", payload, timeout).json()

    def flush_cache(self, attempts: int = 50) -> None:
        """Empty the radix cache; waits for requests that are still on their way out."""
        for _ in range(attempts):
            response = requests.post(self.base_url + "/flush_cache", timeout=60.0)
            if response.ok:
                return
            time.sleep(0.1)
        raise ServerFailed(f"/flush_cache: {response.status_code} {response.text}")

    def abort(self, rid: str | None = None) -> None:
        """Cancel one request by its id, or all of them."""
        self.post("/abort_request", {"rid": rid or "", "abort_all": rid is None})

    def info(self) -> Any:
        """The decoded `/server_info`."""
        return self.get("/server_info").json()

    def metrics(self) -> str:
        """The text of `/metrics`; needs --enable-metrics."""
        return self.get("/metrics").text

    def log(self) -> str:
        """All that the server has written to stdout and stderr so far."""
        return self.log_path.read_text(errors="replace")

    def alive(self) -> bool:
        """False once the main process has ended."""
        return self.process.poll() is None


@contextmanager
def launch_server(
    model: Path | str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    log_path: Path | None = None,
    timeout: float = START_SECONDS,
    defaults: Sequence[str] = SMALL_POOLS,
    launcher: Sequence[str] = LAUNCHER,
) -> Iterator[Server]:
    """Run `python -m sglang.launch_server` on a free port until the block ends.

    ``arguments`` come after ``defaults`` and win; pass ``defaults=()`` for a stock server. The
    log is kept where ``log_path`` says; without it, it lies in a temporary directory that goes
    with the server (its end is in the message of :class:`ServerFailed`).
    """
    port = free_port()
    command = (
        *launcher,
        *("--model-path", str(model), "--host", "127.0.0.1", "--port", str(port)),
        # Else a server that waits would spin on a CPU that another one needs.
        "--sleep-on-idle",
        *defaults,
        *arguments,
    )
    with tempfile.TemporaryDirectory(prefix="sglang-test-") as scratch:
        path = log_path or Path(scratch) / "server.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        server = Server(f"http://127.0.0.1:{port}", path, process, command)
        try:
            _wait_until_ready(server, timeout)
            yield server
        finally:
            kill_tree(process)


def failing_launch(
    model: Path | str, *arguments: str, timeout: float = START_SECONDS, **options: Any
) -> str:
    """Start a server that must refuse to start, and return its whole log.

    For tests of bad input; raises :class:`AssertionError` if the server becomes ready.
    """
    with tempfile.TemporaryDirectory(prefix="sglang-test-") as scratch:
        path = Path(scratch) / "server.log"
        try:
            with launch_server(
                model, *arguments, log_path=path, timeout=timeout, **options
            ) as server:
                raise AssertionError(f"the server started: {' '.join(server.command)}")
        except ServerFailed:
            return path.read_text(errors="replace")


def _wait_until_ready(server: Server, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not server.alive():
            raise ServerFailed(_report(server, f"exited with code {server.process.returncode}"))
        with suppress(requests.RequestException):
            if requests.get(server.base_url + "/health", timeout=5.0).ok:
                return
        time.sleep(0.25)
    raise ServerFailed(_report(server, f"was not ready after {timeout:.0f} s"))


def _report(server: Server, what: str) -> str:
    tail = "\n".join(server.log().splitlines()[-LOG_TAIL_LINES:])
    return f"{' '.join(server.command)}\n{what}; the end of its log:\n{tail}"


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a server started here and everything it started."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    # Workers may have been reparented if the main process went first; the session holds them.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)


def _die_with_parent() -> None:
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def recorded_lines(recording: Path, count: int, seconds: float = 60.0) -> list[Any]:
    """What ``--marconi-record`` wrote, once it is ``count`` lines or ``seconds`` are over.

    Its writer is of lowest priority and may lag behind the server.
    """
    deadline = time.monotonic() + seconds
    while True:
        lines = recording.read_text().splitlines(keepends=True) if recording.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        if len(whole) >= count or time.monotonic() > deadline:
            return whole
        time.sleep(0.1)


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt if isinstance(prompt, str) else prompt[0], str)


def tiny_model(model: str = "qwen3-next", dtype: str = "bfloat16") -> Path:
    """The directory of a tiny model, written on first use.

    It lies below SGLANG_MARCONI_CACHE (default: .cache in the repository) under a name that
    changes with the code that writes it, so that an old one is never taken for a new one.
    """
    root = Path(os.environ.get(CACHE_VARIABLE) or REPOSITORY / ".cache") / "tiny-models"
    source = importlib.util.find_spec("sglang_cpu_reference.tiny_models")
    if source is None or source.origin is None:
        raise RuntimeError("install test/cpu_platform first")
    recipe = Path(source.origin).read_bytes() + version("transformers").encode()
    directory = root / f"{model}-{dtype}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    if directory.exists():
        return directory
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=directory.name, dir=root))
    try:
        command = [sys.executable, "-m", "sglang_cpu_reference.tiny_models", str(scratch)]
        subprocess.run([*command, "--model", model, "--dtype", dtype], check=True)
        with suppress(OSError):  # Another process may have been first; its model is the same.
            scratch.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return directory
