"""SGLang 0.5.23: stock's caches and the product's, one request at a time or overlapping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from policies import PolicyContext, cache_arguments
from sglang.srt.mem_cache.marconi.advice.load.served import Served
from sglang.srt.mem_cache.marconi.insight.stats import MarconiStats
from traces import Request

from lab.cpu_cache import CpuCache, server_context
from lab.loaded import serve_loaded
from lab.replay_cache import Replay
from lab.spec import RunSpec


@dataclass
class ServerWorld:
    """See :class:`lab.bases.World`."""

    replay: Replay
    spec: RunSpec
    stats: MarconiStats | None

    def serve(self, requests: Iterable[Request]) -> Iterator[Served]:
        return serve_loaded(self.spec, self.replay, requests)


def check_world(spec: RunSpec, context: PolicyContext) -> None:
    """See :meth:`lab.bases.BaseModule.check_world`; this base does all that a spec can say."""


@contextmanager
def open_world(spec: RunSpec, context: PolicyContext) -> Iterator[ServerWorld]:
    """See :meth:`lab.bases.BaseModule.open_world`."""
    arguments = cache_arguments(spec.policy, context)
    with server_context(chunk=1, max_states_per_path=arguments.max_states_per_path):
        cache = CpuCache(**arguments.for_cache(context))
        stats = getattr(cache.cache, "stats", None)
        yield ServerWorld(Replay(cache, spec.block), spec, stats)
        cache.cache.sanity_check()
