"""Streams one reply from a server, by SGLang's own interface or OpenAI's, and times it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

APIS = ("generate", "completions")


class RequestFailed(Exception):
    """The server refused or broke off one request; the message is short enough to count by."""


@dataclass(frozen=True)
class Answer:
    """One reply. Times in seconds; lengths in tokens.

    Attributes:
        cached_tokens: tokens of the prompt that needed no prefill; None where the server does
            not say (``/v1/completions`` needs ``--enable-cache-report``).
        ttft: until the first token.
        gaps: between one token and the next; tokens that arrive together share their time.
    """

    tokens: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int | None
    ttft: float
    gaps: tuple[float, ...]
    seconds: float


@dataclass
class _Stream:
    """A reply in the making."""

    started: float
    tokens: list[int]
    arrivals: list[tuple[float, int]]

    def heard(self, total: int) -> None:
        """``total`` tokens have arrived by now."""
        before = self.arrivals[-1][1] if self.arrivals else 0
        if total > before:
            self.arrivals.append((time.perf_counter(), total))

    def answer(self, prompt_tokens: int, cached_tokens: int | None) -> Answer:
        if not self.arrivals:
            raise RequestFailed("no token arrived")
        gaps: list[float] = []
        for (earlier, before), (later, total) in zip(
            self.arrivals, self.arrivals[1:], strict=False
        ):
            gaps += [(later - earlier) / (total - before)] * (total - before)
        return Answer(
            tokens=tuple(self.tokens),
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            ttft=self.arrivals[0][0] - self.started,
            gaps=tuple(gaps),
            seconds=time.perf_counter() - self.started,
        )


class Client:
    """Sends greedy requests to one server.

    Args:
        api: "generate" (SGLang's ``/generate``) or "completions" (``/v1/completions``).
        ignore_eos: every reply gets the length asked for.
    """

    def __init__(
        self, http: aiohttp.ClientSession, url: str, api: str, model: str, *, ignore_eos: bool
    ) -> None:
        self._http = http
        self._url = url
        self._send = {"generate": self._generate, "completions": self._complete}[api]
        self._model = model
        self._ignore_eos = ignore_eos

    async def send(self, prompt: Sequence[int], reply_length: int) -> Answer:
        """One reply of at most ``reply_length`` tokens.

        Raises:
            RequestFailed: the server refused it, broke off, or cannot be reached.
        """
        try:
            return await self._send(list(prompt), reply_length)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RequestFailed(type(error).__name__) from error

    async def _generate(self, prompt: list[int], reply_length: int) -> Answer:
        payload = {
            "input_ids": prompt,
            "stream": True,
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": reply_length,
                "ignore_eos": self._ignore_eos,
            },
        }
        stream = _Stream(time.perf_counter(), [], [])
        meta: dict[str, Any] = {}
        async for event in self._events("/generate", payload):
            meta = event["meta_info"]
            total = int(meta["completion_tokens"])
            ids = event.get("output_ids") or []
            # With --incremental-streaming-output an event holds its own tokens only.
            stream.tokens = list(ids) if len(ids) == total else stream.tokens + list(ids)
            stream.heard(total)
        reason = meta.get("finish_reason") or {}
        if reason.get("type") == "abort":
            raise RequestFailed(f"aborted: {reason.get('message', '')}"[:120])
        return stream.answer(int(meta.get("prompt_tokens", 0)), meta.get("cached_tokens"))

    async def _complete(self, prompt: list[int], reply_length: int) -> Answer:
        payload = {
            "model": self._model,
            "prompt": prompt,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_tokens": reply_length,
            "ignore_eos": self._ignore_eos,
            "return_token_ids": True,
        }
        stream = _Stream(time.perf_counter(), [], [])
        usage: dict[str, Any] = {}
        async for event in self._events("/v1/completions", payload):
            for choice in event.get("choices", ()):
                if choice.get("token_ids") is None:
                    raise RequestFailed("the server returns no token ids")
                stream.tokens += choice["token_ids"]
                stream.heard(len(stream.tokens))
            usage = event.get("usage") or usage
        details = usage.get("prompt_tokens_details") or {}
        return stream.answer(int(usage.get("prompt_tokens", 0)), details.get("cached_tokens"))

    async def _events(self, path: str, payload: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async with self._http.post(self._url + path, json=payload) as response:
            if response.status != 200:
                text = (await response.text())[:120]
                raise RequestFailed(f"HTTP {response.status}: {text}")
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    raise RequestFailed(str(event["error"])[:120])
                yield event
