"""Serves one launch by stock and by a policy: equal answers, slots whole, nothing fell back."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
from live.server_api import marconi_counters

from launches.listed import Launch, Outcome
from launches.served import Ended, Served, serve

POLICY_1 = ("--marconi-evict-policy", "1")
TOKENS = 8
CLIENTS = 6
#: One request in so many is cancelled while it runs.
CANCELLED_EVERY = 9
#: What SGLang says of a request that it gives up where memory is out, backups under way included;
#: one request in so many at most.
STARVED, STARVED_EVERY = "Out of memory", 100


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
        with serve(launch, model, ()) as served:
            wanted, outcome.stock_cached = _answers(served, prompts)
        if launch.decode:
            with serve(launch.undivided(), model, ()) as served:
                if _answers(served, prompts)[0] != wanted:
                    outcome.problems.append("stock's pair does not answer as one stock server")
        if launch.rounds:
            with serve(launch, model, POLICY_1) as served:
                outcome.equal = _equal(_answers(served, prompts)[0], wanted)
        with serve(launch, model, launch.policy) as served:
            found, outcome.cached = _answers(served, prompts, outcome)
            if not launch.rounds:
                outcome.equal = _equal(found, wanted)
            _under_load(served, requests_under_load, outcome)
            _look(served, outcome)
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
        with serve(launch, model, launch.policy):
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
    served: Served, prompts: Sequence[Sequence[int]], outcome: Outcome | None = None
) -> tuple[list[list[int]], int]:
    """Greedy continuations one after another, and prompt tokens that came from the cache.

    Drafts that were proposed, and right, are counted in ``outcome``.
    """
    answers = [_generate(served, prompt, TOKENS) for prompt in prompts]
    metas = [answer["meta_info"] for answer in answers]
    cached = sum(meta["cached_tokens"] for meta in metas)
    if outcome:
        outcome.drafts += sum(meta.get("spec_num_proposed_drafts", 0) for meta in metas)
        outcome.right += sum(meta.get("spec_num_correct_drafts", 0) for meta in metas)
    return [answer["output_ids"] for answer in answers], cached


def _under_load(served: Served, count: int, outcome: Outcome) -> None:
    """Several clients at once, some of whose requests are cancelled."""
    prompts = conversations(seed=99, count=max(count // 10, 1), turns=10)[:count]
    lock = threading.Lock()

    def ask(numbered: tuple[int, list[int]]) -> None:
        number, prompt = numbered
        rid = f"load-{number}"
        if number % CANCELLED_EVERY:
            answer = served.ask(prompt, TOKENS, rid)
            if answer.ok or STARVED not in answer.text:
                answer.raise_for_status()
                return
            with lock:
                outcome.starved += 1
            return
        with ThreadPoolExecutor(1) as one:
            running = one.submit(served.ask, prompt, 200, rid)
            # A server forgets a cancellation that comes before its request.
            while not running.done():
                time.sleep(0.05)
                served.cancel(rid)
            cancelled = _was_cancelled(running.result())
        with lock:
            outcome.cancelled += cancelled

    with ThreadPoolExecutor(CLIENTS) as clients:
        outcome.under_load = len(list(clients.map(ask, enumerate(prompts, 1))))
    if outcome.starved > outcome.under_load / STARVED_EVERY:
        outcome.problems.append(f"{outcome.starved} requests found no memory")


def _was_cancelled(answer: requests.Response) -> bool:
    """Whether an answer says so; a decode server calls it an error while it waits for a prompt."""
    if not answer.ok and "Aborted by AbortReq" in answer.text:
        return True
    answer.raise_for_status()
    return bool(answer.json()["meta_info"]["finish_reason"]["type"] == "abort")


def _look(served: Served, outcome: Outcome) -> None:
    """What counters and logs say; SGLang compares its pools with its tree when it idles."""
    replicas_of = [replicas for url in served.urls if (replicas := marconi_counters(url))]
    served.flush()
    _generate(served, [5, 6, 7], 2)
    served.flush()
    replicas = [one for its_replicas in replicas_of for one in its_replicas]
    outcome.core = ", ".join({str(one["tree_core"]) for one in replicas})
    outcome.evicted_states = sum(one["states_evicted"] for one in replicas)
    outcome.evicted_kv = sum(one["kv_tokens_evicted"] for one in replicas)
    if not all(any(one["states_evicted"] for one in its_replicas) for its_replicas in replicas_of):
        outcome.problems.append("nothing was evicted")
    for one in replicas:
        if one["errors"] or one["fallbacks_to_lru"] or one["view_rebuilds"]:
            outcome.problems.append(f"errors {one['errors']}, LRU {one['fallbacks_to_lru']}")
    for log in served.logs:
        text = log.read_text(errors="replace")
        if "leak" in text.lower() or "Traceback" in text:
            outcome.problems.append(_last_words(text))


def _generate(served: Served, prompt: Sequence[int], tokens: int, rid: str | None = None) -> Any:
    answer = served.ask(prompt, tokens, rid)
    answer.raise_for_status()
    return answer.json()


def _equal(found: Sequence[object], wanted: Sequence[object]) -> int:
    return sum(one == other for one, other in zip(found, wanted, strict=True))


def _last_words(log: str) -> str:
    """The line of a log that says what was wrong, as far as one does."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "leak" in line.lower()]
    return (errors or lines or ["nothing was said"])[-1][:300]
