"""Clients that talk to one server all at once, each waiting for its reply before it goes on.

More clients than the server runs at a time make a queue, and their conversations together outgrow
its cache. Every prompt is all that was said before, the server's own replies included, and the
turn's new tokens. Behind the same instructions for all, every token is random.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import aiohttp
from live.client import Client, RequestFailed
from traces.generator.chat import FIRST_TOKEN, LAST_TOKEN

from demonstration.served import Run, Served

REQUEST_SECONDS = 600.0
# One event of a stream holds the whole reply so far.
LINE_BYTES = 1 << 22

#: Sends a prompt and asks for so many tokens; gives what was measured and the reply's token ids.
Send = Callable[[Sequence[int], int], Awaitable[tuple[Served, Sequence[int]]]]


@dataclass(frozen=True)
class Conversation:
    """What one client says, turn by turn, in token ids; each reply has ``reply_length`` tokens."""

    turns: tuple[tuple[int, ...], ...]
    reply_length: int

    @property
    def tokens(self) -> int:
        """Length of the whole conversation, replies included."""
        return sum(len(turn) + self.reply_length for turn in self.turns)


@dataclass(frozen=True)
class Crowd:
    """The clients and their conversations; lengths in tokens, drawn evenly between two bounds.

    Attributes:
        shared: the instructions that every conversation begins with.
        first: what follows them in a conversation's first prompt.
        later: what every other turn adds.
    """

    clients: int
    turns: int
    shared: int
    first: tuple[int, int]
    later: tuple[int, int]
    reply_length: int
    seed: int

    def scaled(self, factor: int) -> Crowd:
        """The same conversations with all lengths multiplied."""
        return replace(
            self,
            shared=factor * self.shared,
            first=(factor * self.first[0], factor * self.first[1]),
            later=(factor * self.later[0], factor * self.later[1]),
            reply_length=factor * self.reply_length,
        )

    def conversations(self, number: int) -> tuple[Conversation, ...]:
        """Every client's conversation of that number, the same for the same seed."""
        instructions = _tokens(random.Random(f"{self.seed}/shared"), self.shared)
        made = []
        for client in range(self.clients):
            rng = random.Random(f"{self.seed}/{number}/{client}")
            turns = [instructions + _tokens(rng, rng.randint(*self.first))]
            turns += [_tokens(rng, rng.randint(*self.later)) for _ in range(self.turns - 1)]
            made.append(Conversation(tuple(turns), self.reply_length))
        return tuple(made)

    def live_tokens(self, number: int) -> int:
        """Tokens of all conversations that go on at the same time, what they share counted once."""
        conversations = self.conversations(number)
        shared = self.shared * (len(conversations) - 1)
        return sum(one.tokens for one in conversations) - shared

    @property
    def requests(self) -> int:
        """How many requests one conversation of every client makes."""
        return self.clients * self.turns


def run_clients(
    url: str,
    conversations: Sequence[Conversation],
    on_request: Callable[[], object] = lambda: None,
) -> Run:
    """Let every client hold its conversation with the server at ``url``.

    Raises:
        RuntimeError: a request failed; the message says on which server and why.
    """
    try:
        return asyncio.run(_run(url, conversations, on_request))
    except ExceptionGroup as failures:
        raise RuntimeError(f"{url}: {failures.exceptions[0]}") from failures


async def serve(
    send: Send,
    conversations: Sequence[Conversation],
    on_request: Callable[[], object] = lambda: None,
) -> list[Served]:
    """Hold all conversations at once; what was measured, one conversation after the other."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_converse(send, one, on_request)) for one in conversations]
    return [served for task in tasks for served in task.result()]


async def _converse(
    send: Send, conversation: Conversation, on_request: Callable[[], object]
) -> list[Served]:
    said: list[int] = []
    measured = []
    for turn in conversation.turns:
        said += turn
        served, reply = await send(tuple(said), conversation.reply_length)
        said += reply
        measured.append(served)
        on_request()
    return measured


async def _run(
    url: str, conversations: Sequence[Conversation], on_request: Callable[[], object]
) -> Run:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, read_bufsize=LINE_BYTES
    ) as http:
        client = Client(http, url, "generate", "", ignore_eos=True)

        async def send(prompt: Sequence[int], length: int) -> tuple[Served, Sequence[int]]:
            answer = await client.send(prompt, length)
            if len(answer.tokens) != length or answer.cached_tokens is None:
                raise RequestFailed(f"{len(answer.tokens)} of {length} tokens arrived")
            served = Served(len(prompt), answer.cached_tokens, length, answer.ttft, answer.seconds)
            return served, answer.tokens

        start = time.perf_counter()
        served = await serve(send, conversations, on_request)
        return Run(served, time.perf_counter() - start)


def _tokens(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(count))
