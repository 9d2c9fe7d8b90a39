"""Serves one launch by stock and by a policy: equal answers, slots whole, nothing fell back."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests
from live.server_api import flush_cache, marconi_counters
from live.servers import OFFLINE, START_SECONDS, free_port, run_in_group

from launches.listed import Launch, Outcome

#: Room for about a dozen prompts: every few requests evict.
POOLS = (
    *("--max-total-tokens", "4096", "--max-running-requests", "4"),
    *("--max-mamba-cache-size", "24", "--context-length", "4096"),
)
POLICY_1 = ("--marconi-evict-policy", "1")
#: Tells the CPU platform to schedule as SGLang does by default.
OVERLAP = {"SGLANG_CPU_REFERENCE_OVERLAP": "1"}
TOKENS = 8
CLIENTS = 6
#: One request in so many is cancelled while it runs.
CANCELLED_EVERY = 9
#: What SGLang says of a request that it gives up where memory is out, backups under way included;
#: one request in so many at most.
STARVED, STARVED_EVERY = "Out of memory", 100


class Ended(RuntimeError):
    """A server ended, or did not answer in time; the message is its log."""


def conversations(seed: int, count: int = 10, turns: int = 5) -> list[list[int]]:
    """Prompts of interleaved growing conversations, half of them under one system prompt."""
    rng = random.Random(seed)
    system = [rng.randrange(3, 200) for _ in range(130)]
    sessions = [
        (system if i % 2 else []) + [rng.randrange(3, 200) for _ in range(rng.randrange(60, 260))]
        for i in range(count)
    ]
    prompts = []
    for _ in range(turns):
        for session in sorted(sessions, key=lambda _: rng.random()):
            prompts.append(list(session))
            session.extend(rng.randrange(3, 200) for _ in range(rng.randrange(20, 90)))
    return prompts


def try_launch(launch: Launch, model: Path, requests_under_load: int) -> Outcome:
    """Serve a launch by stock and by its policy, one after the other.

    Where states are rounded, outputs depend on where a request resumes: policy 1, which keeps what
    stock keeps, is what stock's answers are compared with there.
    """
    outcome = Outcome(launch.number)
    if launch.refused:
        _try_refused(launch, model, outcome)
        return outcome
    prompts = conversations(seed=launch.number, count=9, turns=4)
    outcome.asked = len(prompts)
    try:
        with _server(launch, model, ()) as (url, _):
            wanted, outcome.stock_cached = _answers(url, prompts)
        if launch.rounds:
            with _server(launch, model, POLICY_1) as (url, _):
                outcome.equal = _equal(_answers(url, prompts)[0], wanted)
        with _server(launch, model, launch.policy) as (url, log):
            found, outcome.cached = _answers(url, prompts, outcome)
            if not launch.rounds:
                outcome.equal = _equal(found, wanted)
            _under_load(url, requests_under_load, outcome)
            _look(url, log, outcome)
    except (Ended, requests.RequestException) as error:
        outcome.problems.append(_last_words(str(error)))
    if launch.drafts and not outcome.problems and not 0 < outcome.right < outcome.drafts:
        outcome.problems.append(f"{outcome.right} of {outcome.drafts} drafts were right")
    if outcome.equal is not None and outcome.equal < outcome.asked:
        outcome.problems.append(f"{outcome.asked - outcome.equal} answers are not stock's")
    outcome.served = not outcome.problems
    return outcome


def _try_refused(launch: Launch, model: Path, outcome: Outcome) -> None:
    try:
        with _server(launch, model, launch.policy):
            outcome.problems.append("it was served")
    except Ended as error:
        log = str(error)
        outcome.message = next((line for line in log.splitlines() if launch.refused in line), "")
        outcome.message = outcome.message[outcome.message.find("--marconi") :]
        if not outcome.message:
            outcome.problems.append(_last_words(log))
        if "Load weight begin" in log:
            outcome.problems.append("the model was loaded first")
    outcome.served = not outcome.problems


def _answers(
    url: str, prompts: Sequence[Sequence[int]], outcome: Outcome | None = None
) -> tuple[list[list[int]], int]:
    """Greedy continuations one after another, and prompt tokens that came from the cache.

    Drafts that were proposed, and right, are counted in ``outcome``.
    """
    answers = [_generate(url, prompt, TOKENS) for prompt in prompts]
    metas = [answer["meta_info"] for answer in answers]
    cached = sum(meta["cached_tokens"] for meta in metas)
    if outcome:
        outcome.drafts += sum(meta.get("spec_num_proposed_drafts", 0) for meta in metas)
        outcome.right += sum(meta.get("spec_num_correct_drafts", 0) for meta in metas)
    return [answer["output_ids"] for answer in answers], cached


def _under_load(url: str, count: int, outcome: Outcome) -> None:
    """Several clients at once, some of whose requests are cancelled."""
    prompts = conversations(seed=99, count=max(count // 10, 1), turns=10)[:count]
    lock = threading.Lock()

    def ask(numbered: tuple[int, list[int]]) -> None:
        number, prompt = numbered
        rid = f"load-{number}"
        if number % CANCELLED_EVERY:
            try:
                _generate(url, prompt, TOKENS, rid)
            except requests.HTTPError as error:
                if STARVED not in error.response.text:
                    raise
                with lock:
                    outcome.starved += 1
            return
        with ThreadPoolExecutor(1) as one:
            running = one.submit(_generate, url, prompt, 200, rid)
            time.sleep(0.05)
            requests.post(f"{url}/abort_request", json={"rid": rid}, timeout=60)
            reason = running.result()["meta_info"]["finish_reason"]["type"]
        with lock:
            outcome.cancelled += reason == "abort"

    with ThreadPoolExecutor(CLIENTS) as clients:
        outcome.under_load = len(list(clients.map(ask, enumerate(prompts, 1))))
    if outcome.starved > outcome.under_load / STARVED_EVERY:
        outcome.problems.append(f"{outcome.starved} requests found no memory")


def _look(url: str, log: Path, outcome: Outcome) -> None:
    """What the counters and the log say; SGLang compares its pools with its tree when it idles."""
    replicas = marconi_counters(url)
    flush_cache(url)
    _generate(url, [5, 6, 7], 2)
    flush_cache(url)
    outcome.core = ", ".join({str(one["tree_core"]) for one in replicas})
    outcome.evicted_states = sum(one["states_evicted"] for one in replicas)
    outcome.evicted_kv = sum(one["kv_tokens_evicted"] for one in replicas)
    if not outcome.evicted_states:
        outcome.problems.append("nothing was evicted")
    for one in replicas:
        if one["errors"] or one["fallbacks_to_lru"] or one["view_rebuilds"]:
            outcome.problems.append(f"errors {one['errors']}, LRU {one['fallbacks_to_lru']}")
    text = log.read_text(errors="replace")
    if "leak" in text.lower() or "Traceback" in text:
        outcome.problems.append(_last_words(text))


def _generate(url: str, prompt: Sequence[int], tokens: int, rid: str | None = None) -> Any:
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    payload = {"input_ids": list(prompt), "sampling_params": sampling, "rid": rid}
    answer = requests.post(f"{url}/generate", json=payload, timeout=600)
    answer.raise_for_status()
    return answer.json()


def _equal(found: Sequence[object], wanted: Sequence[object]) -> int:
    return sum(one == other for one, other in zip(found, wanted, strict=True))


@contextmanager
def _server(launch: Launch, model: Path, policy: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """A server of the launch; its address and its log.

    Raises:
        Ended: it did not start.
    """
    port = free_port()
    command = (
        *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--sleep-on-idle"),
        *(*POOLS, *launch.flags, *policy),
    )
    with tempfile.TemporaryDirectory(prefix="marconi-matrix-") as folder:
        log = Path(folder) / "server.log"
        storage = {"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": folder}
        with _environment({**OFFLINE, **OVERLAP, **storage}), run_in_group(command, log) as process:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while True:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Ended(log.read_text(errors="replace"))
                with suppress(requests.RequestException):
                    if requests.get(url + "/health", timeout=5).ok:
                        break
                time.sleep(0.25)
            yield url, log


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _last_words(log: str) -> str:
    """The line of a log that says what was wrong, as far as one does."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "leak" in line.lower()]
    return (errors or lines or ["nothing was said"])[-1][:300]
