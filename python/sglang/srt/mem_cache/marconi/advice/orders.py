"""Which order of service, ``--schedule-policy``, shortens the waits, and at whose cost?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from sglang.srt.mem_cache.marconi.advice.load.arrivals import TraceArrivals
from sglang.srt.mem_cache.marconi.advice.load.scheduler import Scheduler
from sglang.srt.mem_cache.marconi.advice.load.schedules import FCFS, SCHEDULES
from sglang.srt.mem_cache.marconi.advice.load.served import Served
from sglang.srt.mem_cache.marconi.advice.load.service import ServiceTimes
from sglang.srt.mem_cache.marconi.advice.loaded_shadow import LoadedShadow
from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest, with_sessions
from sglang.srt.mem_cache.marconi.costs.model import ModelCost
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache

#: Orders that are tried; a recording has no priorities.
ORDERS = (FCFS.name, "lpm", "hrrn", "shortest-prefill-first")
#: An order is advised where it takes this share off the mean time to the first token …
WORTH_A_FLAG = 0.1
#: … and the longest wait is no longer than so many times that under fcfs.
MOST_WAIT = 1.2
#: A server that is further behind at the end than this share of the recording's time falls behind.
BEHIND = 0.1


@dataclass(frozen=True)
class LoadedServer:
    """How fast the server is, and how many requests run at a time; the others wait."""

    service: ServiceTimes
    running: int


@dataclass(frozen=True)
class PassedOver:
    """Requests that wait longer than anybody does under fcfs.

    Attributes:
        requests, sessions: how many.
        begin: of the requests, those that begin a session.
        computed: tokens of their prompts that are computed, on average.
        others_computed: the same of all other requests.
    """

    requests: int
    sessions: int
    begin: int
    computed: float
    others_computed: float


@dataclass(frozen=True)
class OrderOutcome:
    """What one order gives; times in seconds, shares of all prompts.

    Attributes:
        unserved: requests that do not fit even alone.
        behind: from the last arrival until the last request was admitted.
        keeps_up: ``behind`` is little beside the recording's time.
        passed_over: compared with fcfs.
    """

    order: str
    saved: float
    token_hit_rate: float
    requests_per_second: float
    ttft_mean: float
    ttft_p95: float
    ttft_p99: float
    longest_wait: float
    unserved: int
    behind: float
    keeps_up: bool
    passed_over: PassedOver


@dataclass(frozen=True)
class OrderAdvice:
    """What the orders give with one option.

    Attributes:
        requests: that were served.
        seconds: in which they arrived.
        recorded: seconds until the first prefill chunk as the recording server did it: mean, P95,
            P99; ``None`` where it was not recorded.
        outcomes: by order; fcfs first.
        advised: the order to serve in, fcfs unless another is worth its flag.
        costly: orders that gain as much, and let somebody wait too long or do not keep up; the
            shortest mean time to the first token first.
    """

    requests: int
    seconds: float
    recorded: tuple[float, float, float] | None
    outcomes: dict[str, OrderOutcome]
    advised: str
    costly: tuple[str, ...]


def arrived(requests: Sequence[HashedRequest], most: int) -> list[HashedRequest]:
    """The first ``most`` requests by arrival, in ms from the first of them, in their sessions.

    Those whose arrival is unknown are left out.
    """
    known = [one for one in requests if not math.isnan(one.timestamp_ms)]
    known = sorted(known, key=lambda one: one.timestamp_ms)[:most]
    return [
        replace(one, timestamp_ms=one.timestamp_ms - known[0].timestamp_ms)
        for one in with_sessions(known)
    ]


def advise_order(
    requests: Sequence[HashedRequest],
    cost: ModelCost,
    make_cache: Callable[[], ShadowCache],
    block_tokens: int,
    server: LoadedServer,
) -> OrderAdvice:
    """Serve ``requests`` in every order, each from an empty cache.

    Args:
        requests: see :func:`arrived`; one or more.
        make_cache: an empty one of the option.
    """
    found = {}
    for order in ORDERS:
        cache = LoadedShadow(make_cache(), block_tokens)
        scheduler = Scheduler(
            *(cache, cost, server.service),
            running=server.running,
            schedule=SCHEDULES[order],
            block=block_tokens,
        )
        found[order] = list(scheduler.serve(TraceArrivals(requests)))
    longest = max(map(_wait, found[FCFS.name]), default=0.0)
    outcomes = {
        order: outcome(order, served, requests, cost, longest) for order, served in found.items()
    }
    waits = [one.waited_ms / 1000 for one in requests if one.waited_ms is not None]
    return OrderAdvice(
        len(requests),
        requests[-1].timestamp_ms / 1000,
        _mean_and_tail(waits) if waits else None,
        outcomes,
        *choose(outcomes),
    )


def choose(outcomes: dict[str, OrderOutcome]) -> tuple[str, tuple[str, ...]]:
    """The order that is advised, and those that cost too much: see :class:`OrderAdvice`."""
    fcfs = outcomes[FCFS.name]
    faster = sorted(
        (one for one in outcomes.values() if one is not fcfs and _is_faster(one, fcfs)),
        key=lambda one: one.ttft_mean,
    )
    # Where the queue grows all the time, waits are as long as the recording makes them.
    fair = [one for one in faster if one.keeps_up and is_fair(one, fcfs)]
    costly = tuple(one.order for one in faster if one not in fair)
    return fair[0].order if fair else fcfs.order, costly


def _is_faster(one: OrderOutcome, fcfs: OrderOutcome) -> bool:
    return one.ttft_mean <= (1 - WORTH_A_FLAG) * fcfs.ttft_mean


def is_fair(one: OrderOutcome, fcfs: OrderOutcome) -> bool:
    """Nobody waits much longer than somebody does under fcfs."""
    return one.longest_wait <= MOST_WAIT * fcfs.longest_wait


def outcome(
    order: str,
    served: Sequence[Served],
    requests: Sequence[HashedRequest],
    cost: ModelCost,
    longest: float,
) -> OrderOutcome:
    """What the requests that were served make of an order.

    Args:
        longest: wait under fcfs, in seconds.
    """
    timed = [one for one in served if one.served]
    ttfts = [one.ttft_seconds or 0.0 for one in timed] or [0.0]
    needed = sum(cost.flops(0, one.input_tokens) for one in served)
    span = requests[-1].timestamp_ms / 1000
    ended = max(one.ended_seconds or 0.0 for one in served)
    behind = max((one.came_seconds or 0.0) + _wait(one) for one in served) - span
    mean, p95, p99 = _mean_and_tail(ttfts)
    return OrderOutcome(
        order=order,
        saved=sum(cost.flops(0, one.hit_tokens) for one in served) / max(needed, 1),
        token_hit_rate=sum(one.hit_tokens for one in served)
        / max(sum(one.input_tokens for one in served), 1),
        requests_per_second=len(timed) / max(ended, 1e-9),
        ttft_mean=mean,
        ttft_p95=p95,
        ttft_p99=p99,
        longest_wait=max(map(_wait, served)),
        unserved=len(served) - len(timed),
        behind=max(behind, 0.0),
        keeps_up=behind <= BEHIND * span,
        passed_over=_passed_over(served, requests, longest),
    )


def _passed_over(
    served: Sequence[Served], requests: Sequence[HashedRequest], longest: float
) -> PassedOver:
    first: dict[str | None, int] = {}
    for index, request in enumerate(requests):
        first.setdefault(request.session, index)
    late = [one for one in served if _wait(one) > longest]
    others = [one for one in served if _wait(one) <= longest]
    return PassedOver(
        requests=len(late),
        sessions=len({one.session for one in late}),
        begin=sum(first[one.session] == one.index for one in late),
        computed=_mean_computed(late),
        others_computed=_mean_computed(others),
    )


def _mean_and_tail(seconds: Sequence[float]) -> tuple[float, float, float]:
    p95, p99 = np.percentile(seconds, (95, 99))
    return fmean(seconds), float(p95), float(p99)


def _mean_computed(served: Sequence[Served]) -> float:
    return fmean(one.input_tokens - one.hit_tokens for one in served) if served else 0.0


def _wait(one: Served) -> float:
    return one.wait_seconds or 0.0
