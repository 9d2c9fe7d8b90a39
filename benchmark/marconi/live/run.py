"""Plays a workload against one server, at the trace's pace or a fixed number at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from live.client import Answer, Client, RequestFailed
from live.history import Conversation, TokenSource
from live.schedule import Backlog, due_times
from live.workload import Turn

# One event of a stream holds the whole reply so far, as text and as token ids.
LINE_BYTES = 1 << 24


@dataclass(frozen=True)
class Sent:
    """One request and what became of it; ``answer`` is None where ``error`` says why.

    Times in seconds from the start of the run, ``due`` being when the trace asks for it.
    """

    turn: Turn
    prompt: tuple[int, ...]
    due: float
    start: float
    end: float
    answer: Answer | None
    error: str | None


@dataclass(frozen=True)
class Pace:
    """When requests go out.

    Attributes:
        speed: open loop: the trace's timestamps, so many times as fast; None for closed loop.
        concurrency: at most so many at a time; None for any number.
        active: at most so many sessions that have begun and not ended; None for any number.
    """

    speed: float | None
    concurrency: int | None
    active: int | None = None

    def __str__(self) -> str:
        limit = "" if self.concurrency is None else f", {self.concurrency} at a time"
        limit += "" if self.active is None else f", {self.active} sessions"
        return f"open loop, speed {self.speed:g}{limit}" if self.speed else f"closed loop{limit}"


class Player:
    """Plays turns against one server; conversations go on from one call of play to the next."""

    def __init__(
        self,
        url: str,
        source: TokenSource,
        *,
        api: str,
        model: str,
        ignore_eos: bool,
        timeout: float,
    ) -> None:
        self._url, self._api, self._model = url, api, model
        self._ignore_eos, self._timeout = ignore_eos, timeout
        self._source = source
        self._conversations: dict[str, Conversation] = {}

    def play(
        self, turns: Sequence[Turn], pace: Pace, on_request: Callable[[Sent], None]
    ) -> list[Sent]:
        """Send all ``turns`` and return what became of them, in their order."""
        return asyncio.run(self._play(turns, pace, on_request))

    async def _play(
        self, turns: Sequence[Turn], pace: Pace, on_request: Callable[[Sent], None]
    ) -> list[Sent]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, read_bufsize=LINE_BYTES
        ) as http:
            client = Client(http, self._url, self._api, self._model, ignore_eos=self._ignore_eos)
            return await self._drive(client, turns, pace, on_request)

    async def _drive(
        self,
        client: Client,
        turns: Sequence[Turn],
        pace: Pace,
        on_request: Callable[[Sent], None],
    ) -> list[Sent]:
        due = due_times(turns, pace.speed)
        when = {turn.index: seconds for turn, seconds in zip(turns, due, strict=True)}
        backlog = Backlog(turns, due, pace.active)
        running: set[asyncio.Task[Sent]] = set()
        sent: list[Sent] = []
        origin = time.perf_counter()
        while backlog or running:
            now = time.perf_counter() - origin
            while pace.concurrency is None or len(running) < pace.concurrency:
                turn = backlog.take(now)
                if turn is None:
                    break
                job = self._one(client, turn, when[turn.index], origin)
                running.add(asyncio.create_task(job))
            wait = backlog.next_due()
            full = pace.concurrency is not None and len(running) >= pace.concurrency
            pause = None if wait is None or full else max(wait - now, 0.0)
            if not running:
                await asyncio.sleep(pause or 0.0)
                continue
            done, running = await asyncio.wait(
                running, timeout=pause, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                result = task.result()
                backlog.answered(result.turn)
                sent.append(result)
                on_request(result)
        return sorted(sent, key=lambda one: one.turn.index)

    async def _one(self, client: Client, turn: Turn, due: float, origin: float) -> Sent:
        conversation = self._conversations.setdefault(
            turn.session, Conversation(turn.session, self._source)
        )
        prompt = conversation.prompt(turn.request)
        start = time.perf_counter() - origin
        answer: Answer | None = None
        error: str | None = None
        try:
            answer = await client.send(prompt, max(turn.request.output_length, 1))
            conversation.answered(turn.request, prompt, answer.tokens)
        except RequestFailed as failure:
            error = str(failure)
        end = time.perf_counter() - origin
        return Sent(turn, tuple(prompt), due, start, end, answer, error)
