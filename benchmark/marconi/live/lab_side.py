"""The simulator's answer to requests that a real server has answered, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.cpu_cache import CpuCache, server_context
from lab.replay_cache import Replay
from policies import PolicyContext, cache_arguments
from sglang.srt.marconi_utils import ModelCost
from traces import Request

from live.run import Sent


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
    """

    kv_tokens: int
    states: int
    chunk: int = 64
    chunked_prefill: int = 8192
    working_states: int = 2


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
        cache = CpuCache(**arguments.for_cache(context))
        replay = Replay(
            cache,
            1,
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
