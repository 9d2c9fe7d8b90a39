"""What the same policy would hit in the same memory with cached states of another type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest
from sglang.srt.mem_cache.marconi.advice.replay import POLICY_ROWS, Option, server_shape, shares
from sglang.srt.mem_cache.marconi.costs.model import ModelCost
from sglang.srt.mem_cache.marconi.costs.state_types import StateType, state_types
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from sglang.srt.mem_cache.marconi.tuning.splits import resplit


@dataclass(frozen=True)
class TypedStates:
    """What one type of cached states gives, at the split that saves most with it.

    Attributes:
        held_as: the type's name.
        flags: how the server is told of the type, and how many compressed states it is to hold.
        state_bytes: of one cached state.
        states: slots that hold cached states; those of running requests come out of them, unless
            the type is compressed.
        option: the policy, the split and what they save.
    """

    held_as: str
    flags: str
    state_bytes: int
    states: int
    option: Option


def by_state_type(
    requests: Sequence[HashedRequest],
    cost: ModelCost,
    memory_bytes: float,
    best: Option,
    *,
    block_tokens: int,
    ratios: Sequence[float],
) -> list[TypedStates]:
    """Replay ``requests`` under the policy of ``best`` with each type, at every split.

    Types for which the memory is too little at every split are left out.

    Args:
        cost: with states of the config's type.
        memory_bytes: of all pools together.
        best: with a pool each for states and KV; taken as the answer for the config's type.
        ratios: bytes of all that holds states to a byte of KV.
    """
    row = POLICY_ROWS[best.policy]
    found = []
    for kind in state_types(cost):
        typed = cost.with_pool_bytes(cost.kv_bytes_per_token, kind.bytes)
        is_own = kind.bytes == cost.state_bytes and not kind.compressed
        tried = []
        for ratio in [best.ratio or 0.0] if is_own else ratios:
            base = server_shape(row, block_tokens)
            shape = divided(base, cost, kind, memory_bytes, ratio)
            if shape is None:
                continue
            option = best
            if not is_own:
                cache = ShadowCache(shape, row.static(typed))
                option = Option(best.policy, ratio, *shares(cache, requests, cost))
            slots = shape.state_slots
            flags = kind.flags + f" --int8-mamba-ckpt-size {slots}" * kind.compressed
            tried.append(TypedStates(kind.name, flags, kind.bytes, slots, option))
        if tried:
            found.append(max(tried, key=lambda typed: typed.option.saved))
    return found


def divided(
    shape: ShadowShape, cost: ModelCost, kind: StateType, memory_bytes: float, ratio: float
) -> ShadowShape | None:
    """A server with cached states of a type; ``None``: too little memory for it.

    Where they are compressed, the replay's one running request works on full-size states, which
    take their part of what holds states; all the rest of it holds compressed ones.

    Args:
        cost: with states of the config's type, which requests work on.
        memory_bytes: of all pools together.
        ratio: bytes of all that holds states to a byte of KV.
    """
    typed = cost.with_pool_bytes(cost.kv_bytes_per_token, kind.bytes)
    if not kind.compressed:
        return resplit(shape, typed, memory_bytes, ratio)
    kv = memory_bytes / (1 + ratio)
    cached = memory_bytes - kv - shape.working_states * cost.state_bytes
    if cached <= 0:
        return None
    return resplit(replace(shape, working_states=0), typed, kv + cached, cached / kv)
