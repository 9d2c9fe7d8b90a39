"""Does the simulated scheduler hit what a server under load hits? A closed loop on both sides.

Of requests that come at once the server sees one first, by chance. The simulator's come in the
order in which the clients sent them; where the server saw another, later requests may differ.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from lab.arrivals import ClosedArrivals
from lab.cpu_cache import CpuCache, server_context
from lab.replay_cache import Replay
from policies import PolicyContext, cache_arguments
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.marconi.advice.load.scheduler import Scheduler
from sglang.srt.mem_cache.marconi.advice.load.schedules import SCHEDULES
from sglang.srt.mem_cache.marconi.advice.load.service import ServiceTimes
from traces import Request

from live.client import Answer, Client, RequestFailed
from live.history import TokenSource
from live.lab_side import ServerShape, as_request
from live.run import LINE_BYTES, Pace, Player, Sent
from live.server_api import flush_cache, served_model
from live.servers import launch_servers
from live.workload import Turn

#: Points of the token hit rate that simulator and server may lie apart.
CLOSE_POINTS = 1.0
#: Scheduling passes of a server before the loop, by its own two requests at the start.
PASSES_BEFORE = 2
#: Seconds by which a server sees the first request of the loop before the second.
FIRST_AHEAD = 1e-3
#: Tokens of the prompts, and of the longer answer, by which a server's speed is measured.
PROBE_PROMPT, PROBE_OUTPUT, PROBES = 1024, 65, 5


@dataclass(frozen=True)
class Loop:
    """A closed loop.

    Attributes:
        active: sessions that send at a time, each without thinking.
        running: ``--max-running-requests``.
        schedule: ``--schedule-policy``.
    """

    active: int
    running: int
    schedule: str

    def flags(self) -> tuple[str, ...]:
        """Of the server."""
        return (
            *("--max-running-requests", str(self.running)),
            *("--schedule-policy", self.schedule),
        )


@dataclass(frozen=True)
class LoadedAgreement:
    """One policy's comparison; rates in per cent of prompt tokens.

    Attributes:
        differing: requests with other cached tokens.
    """

    policy: str
    loop: Loop
    requests: int
    life: float
    lab: float
    differing: int
    seconds: float

    @property
    def agrees(self) -> bool:
        return abs(self.life - self.lab) <= CLOSE_POINTS

    def __str__(self) -> str:
        return (
            f"{self.policy}, {self.loop.schedule}, {self.loop.active} sessions, "
            f"{self.loop.running} running: {self.requests} requests in {self.seconds:.1f} s, "
            f"server {self.life:.1f} %, simulator {self.lab:.1f} %, {self.differing} differ"
        )


class SentArrivals(ClosedArrivals):
    """A closed loop whose requests come, of those that come at once, as clients sent them.

    Args:
        sent: seconds at which a client sent each request, by its place in the trace.
    """

    def __init__(self, requests: Sequence[Request], active: int, sent: Sequence[float]) -> None:
        self._rank = {
            index: rank for rank, index in enumerate(sorted(range(len(sent)), key=sent.__getitem__))
        }
        super().__init__(requests, active)

    def _send(self, session: str, at: float) -> None:
        rank = self._rank[self._sessions[session][0].index]
        if not at and rank:
            at = FIRST_AHEAD
        super()._send(session, at + rank * 1e-9)


def compare_loaded(
    policy: str,
    flags: Sequence[str],
    turns: Sequence[Turn],
    source: TokenSource,
    shape: ServerShape,
    loop: Loop,
    model: Path,
    cost: ModelCost,
    port: int,
    on_request: Any,
) -> LoadedAgreement:
    """Play a closed loop against a server with ``flags``, and ask the simulator about the same.

    Raises:
        ValueError: a request failed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lab-against-life-") as logs,
        launch_servers(model, {"life": (*flags, *loop.flags())}, Path(logs), port=port) as servers,
    ):
        url = servers["life"].base_url
        flush_cache(url)
        player = Player(
            url, source, api="generate", model=served_model(url), ignore_eos=True, timeout=600.0
        )
        sent = player.play(turns, Pace(None, None, loop.active), lambda _: on_request())
        failed = [one for one in sent if one.answer is None]
        if failed:
            raise ValueError(f"{len(failed)} requests failed, the first with: {failed[0].error}")
        try:
            service = asyncio.run(measured_times(url, cost))
        except RequestFailed as error:
            raise ValueError(f"a request that measures the speed failed: {error}") from error
    life = [one.answer.cached_tokens or 0 for one in sent if one.answer is not None]
    lab = predict_loaded(sent, policy, cost, shape, service, loop)
    tokens = sum(len(one.prompt) for one in sent)
    differing = sum(cached != hit for cached, hit in zip(life, lab, strict=True))
    return LoadedAgreement(
        *(policy, loop, len(sent), 100 * sum(life) / tokens, 100 * sum(lab) / tokens),
        differing=differing,
        seconds=max(one.end for one in sent),
    )


async def measured_times(url: str, cost: ModelCost) -> ServiceTimes:
    """How fast a server without load prefills and decodes, by prompts that hit nothing."""
    rng = random.Random(0)
    async with aiohttp.ClientSession(read_bufsize=LINE_BYTES) as http:
        client = Client(http, url, "generate", served_model(url), ignore_eos=True)

        async def best(prompt: int, output: int) -> Answer:
            answers = [
                await client.send([rng.randrange(3, 200) for _ in range(prompt)], output)
                for _ in range(PROBES)
            ]
            return min(answers, key=lambda answer: answer.seconds)

        long, short = await best(PROBE_PROMPT, PROBE_OUTPUT), await best(8, 1)
    prefill = max(long.ttft - short.ttft, 1e-4)
    decode = (long.seconds - long.ttft) / (PROBE_OUTPUT - 1)
    return ServiceTimes(
        prefill_flops_per_second=float(cost.flops(0, PROBE_PROMPT)) / prefill,
        decode_seconds_per_token=decode,
        batch_seconds=short.ttft,
    )


def predict_loaded(
    sent: Sequence[Sent],
    policy: str,
    cost: ModelCost,
    shape: ServerShape,
    service: ServiceTimes,
    loop: Loop,
) -> list[int]:
    """Tokens of each prompt that hit, where the simulator serves the same closed loop.

    Args:
        sent: answered requests, in the trace's order.
    """
    requests = [as_request(one) for one in sent]
    context = PolicyContext(cost, 1, shape.kv_tokens, shape.states, lambda: iter(requests))
    arguments = cache_arguments(policy, context)
    with server_context(chunk=shape.chunk, max_states_per_path=arguments.max_states_per_path):
        cache = CpuCache(**arguments.for_cache(context))
        replay = Replay(
            *(cache, 1), chunk_tokens=shape.chunked_prefill, working_states=shape.working_states
        )
        for _ in range(PASSES_BEFORE):
            replay.note_queue([], matched=False)
        # One of the two is no probe, and ticks the clock.
        cache.use(cache.look([0]).best_match_node)
        scheduler = Scheduler(
            *(replay, cost, service),
            running=loop.running,
            schedule=SCHEDULES[loop.schedule],
            block=1,
            chunk_tokens=shape.chunked_prefill,
            passes=PASSES_BEFORE,
        )
        arrivals = SentArrivals(requests, loop.active, [one.start for one in sent])
        served = list(scheduler.serve(arrivals))
        cache.cache.sanity_check()
    return [one.hit_tokens for one in sorted(served, key=lambda one: one.index)]
