"""The simulator's answer to requests that a real server has answered, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.cpu_cache import CpuCache, server_context
from lab.host_tier import HostTier
from lab.replay_cache import Replay
from lab.spec import HostSpec
from policies import PolicyContext, cache_arguments
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
from traces import Request

from live.run import Sent

#: Tokens of KV on the host below which SGLang computes them again, unless a state comes with them.
LOAD_BACK_TOKENS = 10


@dataclass(frozen=True)
class ServerShape:
    """What decides, besides the requests, what a server's cache holds.

    Attributes:
        kv_tokens: ``--max-total-tokens``.
        states: ``--max-mamba-cache-size``.
        chunk: depths at which a prefill can leave a state, in tokens: SGLang's
            ``max(mamba_chunk_size or 64, page size)``.
        chunked_prefill: ``--chunked-prefill-size``.
        working_states: states that a running request holds: 2 without overlap scheduling, which
            a CPU does not have, else 3.
        host: memory of the host below; ``None``: the device's alone.
    """

    kv_tokens: int
    states: int
    chunk: int = 64
    chunked_prefill: int = 8192
    working_states: int = 2
    host: HostSpec | None = None


@dataclass(frozen=True)
class Predicted:
    """What the simulator says: hit tokens of each request, and how often it evicted what."""

    hits: tuple[int, ...]
    victims: dict[str, int] | None


def predict(
    sent: Sequence[Sent], policy: str, cost: ModelCost, shape: ServerShape, passes: int
) -> Predicted:
    """Serve what was sent, replies included, from a cache of the same size.

    Args:
        sent: answered requests, in the order in which the server served them, one at a time.
        passes: requests that the server had served before, its cache flushed since.
    """
    requests = [as_request(one) for one in sent]
    context = PolicyContext(cost, 1, shape.kv_tokens, shape.states, lambda: iter(requests))
    arguments = cache_arguments(policy, context)
    with server_context(chunk=shape.chunk, max_states_per_path=arguments.max_states_per_path):
        host = shape.host
        cache = CpuCache(
            **arguments.for_cache(context), lower_tier=None if host is None else LowerTier.HOST
        )
        tier = None
        if host is not None:
            pools = int(host.share * shape.kv_tokens), int(host.share * shape.states)
            tier = HostTier(cache, *pools, host.write_policy, load_back_threshold=LOAD_BACK_TOKENS)
        replay = Replay(
            cache,
            1,
            tier=tier,
            copy_rate=1.0,
            chunk_tokens=shape.chunked_prefill,
            working_states=shape.working_states,
        )
        replay.passes = passes
        hits = tuple(replay.serve(request).hit_tokens for request in requests)
        cache.cache.sanity_check()
    stats: Any = getattr(cache.cache, "stats", None)
    return Predicted(hits, None if stats is None else stats.as_dict()["victims"])


def as_request(one: Sent) -> Request:
    """An answered request, token by token."""
    assert one.answer is not None
    return Request(
        timestamp_ms=1000 * one.start,
        session=one.turn.session,
        input_length=len(one.prompt),
        output_length=len(one.answer.tokens),
        prompt_ids=one.prompt,
        output_ids=one.answer.tokens,
    )
