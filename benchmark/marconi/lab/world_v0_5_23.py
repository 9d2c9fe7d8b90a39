"""SGLang 0.5.23: stock's caches and the product's, one request at a time or overlapping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from policies import PolicyContext, cache_arguments
from sglang.srt.mem_cache.marconi.advice.load.served import Served
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
from sglang.srt.mem_cache.marconi.insight.stats import MarconiStats
from traces import Request

from lab.cpu_cache import CpuCache, server_context
from lab.host_tier import HostTier
from lab.loaded import serve_loaded
from lab.replay_cache import Replay
from lab.spec import RunSpec


@dataclass
class ServerWorld:
    """See :class:`lab.bases.World`."""

    replay: Replay
    spec: RunSpec
    stats: MarconiStats | None

    @property
    def copied_bytes(self) -> dict[str, int] | None:
        """See :class:`lab.bases.World`."""
        tier = self.replay.tier
        if tier is None:
            return None
        copied = {"written": tier.written, "loaded": tier.loaded}
        return {name: round(of.bytes(tier.cpu.cost)) for name, of in copied.items()}

    def serve(self, requests: Iterable[Request]) -> Iterator[Served]:
        return serve_loaded(self.spec, self.replay, requests)


def check_world(spec: RunSpec, context: PolicyContext) -> None:
    """See :meth:`lab.bases.BaseModule.check_world`; this base does all that a spec can say."""


@contextmanager
def open_world(spec: RunSpec, context: PolicyContext) -> Iterator[ServerWorld]:
    """See :meth:`lab.bases.BaseModule.open_world`."""
    arguments = cache_arguments(spec.policy, context)
    host = spec.host
    lower = None if host is None else LowerTier.HOST
    with server_context(chunk=1, max_states_per_path=arguments.max_states_per_path):
        cache = CpuCache(**arguments.for_cache(context), lower_tier=lower)
        stats = getattr(cache.cache, "stats", None)
        tier = None
        if host is not None:
            pools = (int(host.share * cache.kv_tokens), int(host.share * cache.state_slots))
            tier = HostTier(cache, *pools, host.write_policy)
        rate = 0.0 if host is None else host.bytes_per_second
        yield ServerWorld(Replay(cache, spec.block, tier=tier, copy_rate=rate), spec, stats)
        cache.cache.sanity_check()
