"""Sends the chat to all servers side by side: each request to every one before the next.

One request is under way at a time, so what a cache hits depends on the order of the requests
alone, and whatever slows the machine for a while slows every side alike. The server that goes
first changes from request to request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import requests
from traces.generator.chat import FIRST_TOKEN, LAST_TOKEN, Session, prompt_tokens, request_order

from demonstration.served import Served

REQUEST_SECONDS = 120.0
WARM_UP_LENGTHS = (16, 100, 500, 1000, 2000)


def side_by_side(count: int, names: Sequence[str]) -> list[tuple[str, ...]]:
    """For each of ``count`` requests the order in which the servers get it, rotating."""
    return [
        tuple(names[(turn + place) % len(names)] for place in range(len(names)))
        for turn in range(count)
    ]


def run_chat(
    urls: Mapping[str, str],
    sessions: Sequence[Session],
    *,
    on_request: Callable[[], None] = lambda: None,
) -> dict[str, list[Served]]:
    """Serve every turn on every server; prompts repeat that server's own replies.

    Returns what each server did, in the one order of the requests. ``on_request`` is called
    after every request that all have answered.
    """
    order = request_order(sessions)
    replies: dict[str, list[list[list[int]]]] = {name: [[] for _ in sessions] for name in urls}
    served: dict[str, list[Served]] = {name: [] for name in urls}
    with requests.Session() as connection:
        for arrival, names in zip(order, side_by_side(len(order), list(urls)), strict=True):
            session = sessions[arrival.session]
            for name in names:
                told = replies[name][arrival.session]
                prompt = prompt_tokens(session, told)
                reply_length = session.turns[arrival.turn].reply_length
                result, reply = send(connection, urls[name], prompt, reply_length)
                served[name].append(result)
                told.append(reply)
            on_request()
    return served


def warm_up(url: str) -> None:
    """Prompts of several lengths, so that no timed request is the first of its kind."""
    width = LAST_TOKEN - FIRST_TOKEN + 1
    with requests.Session() as connection:
        for length in WARM_UP_LENGTHS:
            prompt = [FIRST_TOKEN + (index * length) % width for index in range(length)]
            send(connection, url, prompt, 8)


def send(
    connection: requests.Session, url: str, prompt: Sequence[int], reply_length: int
) -> tuple[Served, list[int]]:
    """Stream one greedy reply of exactly ``reply_length`` tokens; returns it with its measures."""
    payload: dict[str, Any] = {
        "input_ids": list(prompt),
        "stream": True,
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": reply_length,
            "ignore_eos": True,
        },
    }
    start = time.perf_counter()
    ttft = 0.0
    answer: dict[str, Any] = {}
    with connection.post(
        url + "/generate", json=payload, stream=True, timeout=REQUEST_SECONDS
    ) as response:
        if not response.ok:
            raise requests.HTTPError(f"{url}: {response.status_code} {response.text}")
        for line in response.iter_lines(chunk_size=None):  # type: ignore[call-overload]
            if not line.startswith(b"data: {"):
                continue
            ttft = ttft or time.perf_counter() - start
            answer = json.loads(line.removeprefix(b"data: "))
    seconds = time.perf_counter() - start
    reply = list(answer.get("output_ids", ()))
    if len(reply) != reply_length:
        raise RuntimeError(f"{url}: {len(reply)} of {reply_length} tokens, {answer.get('error')}")
    meta = answer["meta_info"]
    return Served(len(prompt), int(meta["cached_tokens"]), len(reply), ttft, seconds), reply
