"""The demo's clients: what they say, and that each waits for its reply, without a server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from demonstration.clients import Crowd, run_clients, serve
from demonstration.served import Served

CROWD = Crowd(
    clients=24, turns=5, shared=256, first=(300, 700), later=(100, 300), reply_length=8, seed=0
)
SMALL = replace(CROWD, clients=6, turns=4, shared=3, first=(2, 5), later=(1, 4), reply_length=2)


def test_a_seed_makes_one_set_of_conversations_and_another_seed_another():
    assert CROWD.conversations(0) == CROWD.conversations(0)
    assert CROWD.conversations(0) != CROWD.conversations(1)
    assert CROWD.conversations(0) != replace(CROWD, seed=1).conversations(0)
    fewer = replace(CROWD, clients=3).conversations(0)
    assert fewer == CROWD.conversations(0)[:3], "more clients keep the first ones"


def test_all_share_the_instructions_and_nothing_else():
    conversations = [one for number in range(2) for one in CROWD.conversations(number)]
    assert len({one.turns[0][:256] for one in conversations}) == 1
    assert len({one.turns[0][256:272] for one in conversations}) == len(conversations)


def test_lengths_lie_between_their_bounds_and_scale():
    for crowd, factor in ((CROWD, 1), (CROWD.scaled(10), 10)):
        for one in crowd.conversations(0):
            assert 556 * factor <= len(one.turns[0]) <= 956 * factor
            assert all(100 * factor <= len(turn) <= 300 * factor for turn in one.turns[1:])
            assert len(one.turns) == 5 and one.reply_length == 8 * factor


def test_live_tokens_count_what_is_shared_once():
    one, two = replace(SMALL, clients=2).conversations(0)
    assert replace(SMALL, clients=2).live_tokens(0) == one.tokens + two.tokens - SMALL.shared
    assert one.tokens == sum(map(len, one.turns)) + SMALL.turns * SMALL.reply_length


def answer_to(prompt: tuple[int, ...]) -> list[int]:
    """A reply that tells which prompt it is to."""
    return [7 + sum(prompt) % 100, 7 + len(prompt) % 100]


def test_each_client_waits_for_its_reply_and_builds_its_next_turn_on_it():
    conversations = SMALL.conversations(0)
    waiting: list[tuple[tuple[int, ...], asyncio.Future[None]]] = []
    most = 0

    async def send(prompt, length):
        nonlocal most
        done = asyncio.get_running_loop().create_future()
        waiting.append((prompt, done))
        most = max(most, len(waiting))
        await done
        return Served(len(prompt), 0, length, 0.1, 0.2), answer_to(prompt)

    answered: list[tuple[int, ...]] = []

    async def answer_one_at_a_time():
        # The newest first: who waits longest must not be passed by its own next turn.
        for _ in range(SMALL.requests):
            while not waiting:
                await asyncio.sleep(0)
            prompt, done = waiting.pop()
            answered.append(prompt)
            done.set_result(None)
            await asyncio.sleep(0)

    async def both():
        served, _ = await asyncio.gather(serve(send, conversations), answer_one_at_a_time())
        return served

    served = asyncio.run(both())
    assert most == SMALL.clients, "all clients wait at once, none with two requests"
    assert len(served) == len(answered) == SMALL.requests
    for one in conversations:
        said: list[int] = []
        turns = []
        for turn in one.turns:
            said += turn
            turns.append(tuple(said))
            said += answer_to(tuple(said))
        places = [answered.index(prompt) for prompt in turns]
        assert places == sorted(places)
    assert [one.prompt_tokens for one in served[:4]] == [
        sum(map(len, conversations[0].turns[: index + 1])) + 2 * index for index in range(4)
    ]


@contextmanager
def speaker(status: int = 200) -> Iterator[tuple[str, list[list[int]]]]:
    """Answers as /generate streams, on this machine; yields its address and what it was asked."""
    asked: list[list[int]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body["input_ids"])
            self.send_response(status)
            self.end_headers()
            if status != 200:
                return
            reply = answer_to(tuple(body["input_ids"]))
            meta = {"prompt_tokens": len(body["input_ids"]), "cached_tokens": 1}
            for count in (1, 2):
                event = {"output_ids": reply[:count], "meta_info": meta}
                event["meta_info"]["completion_tokens"] = count
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_over_http_the_history_holds_the_actual_replies():
    conversations = SMALL.conversations(0)
    counted = []
    with speaker() as (url, asked):
        run = run_clients(url, conversations, lambda: counted.append(1))
    assert len(asked) == len(run.served) == len(counted) == SMALL.requests
    for one in conversations:
        first = list(one.turns[0])
        second = first + answer_to(tuple(first)) + list(one.turns[1])
        assert first in asked and second in asked
    assert {served.cached_tokens for served in run.served} == {1}
    assert run.seconds > 0


def test_a_refused_request_ends_the_run_and_says_where():
    with speaker(status=503) as (url, _), pytest.raises(RuntimeError, match=f"{url}: HTTP 503"):
        run_clients(url, SMALL.conversations(0))
