"""Serves a trace as a spec says: one request after the other, or under load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from sglang.srt.mem_cache.marconi.advice.load.arrivals import Arrivals, TraceArrivals
from sglang.srt.mem_cache.marconi.advice.load.scheduler import LoadedCache, Scheduler
from sglang.srt.mem_cache.marconi.advice.load.schedules import SCHEDULES
from sglang.srt.mem_cache.marconi.advice.load.served import Served
from traces import Request

from lab.arrivals import ClosedArrivals
from lab.costs import in_time, load_cost
from lab.spec import RunSpec


class Server(LoadedCache, Protocol):
    """A cache that serves one request alone, too."""

    def serve(self, request: Request) -> Served:
        """Serve one request alone; one that does not fit into an empty cache is not served."""


def serve_loaded(spec: RunSpec, cache: Server, requests: Iterable[Request]) -> Iterator[Served]:
    """What each request found, in the order in which they end."""
    if spec.concurrency is None:
        return _alone(cache, requests)
    scheduler = Scheduler(
        cache,
        in_time(load_cost(spec.model), spec.service.attention_time),
        spec.service,
        running=spec.concurrency,
        schedule=SCHEDULES[spec.schedule],
        block=spec.block,
    )
    return scheduler.serve(_arrivals(spec, requests))


def _alone(cache: Server, requests: Iterable[Request]) -> Iterator[Served]:
    for request in requests:
        served = cache.serve(request)
        served.session = request.session
        yield served


def _arrivals(spec: RunSpec, requests: Iterable[Request]) -> Arrivals:
    if spec.active is None:
        return TraceArrivals(requests, spec.service.speed)
    return ClosedArrivals(requests, spec.active, spec.think_seconds)
