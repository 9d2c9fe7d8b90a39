"""Policy 3 on agents that edit their history, and when the traffic changes: not below stock LRU."""

from __future__ import annotations

import pytest
from lab.costs import split_memory
from lab.shadow_world import hashed_requests
from sglang.srt.marconi_utils import cost_by_name
from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest
from sglang.srt.mem_cache.marconi.advice.replay import share_saved
from sglang.srt.mem_cache.marconi.eviction.lru import LruPolicy
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.value import ValuePolicy
from sglang.srt.mem_cache.marconi.tuning.elastic_cache import ElasticShadowCache
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from traces.generator import generate
from traces.timing import Timing

COST = cost_by_name("Qwen3-Next-80B-A3B-Instruct")
BLOCK, GIB = 64, 8
#: Share of all FLOPs by which a result may be below LRU's.
SLACK = 0.003


def workload(shape: str, sessions: int, seed: int = 0) -> list[HashedRequest]:
    made = generate({shape: 1}, sessions=sessions, timing=Timing(seed=seed), block=BLOCK)
    return list(hashed_requests(made, BLOCK))


@pytest.fixture(scope="module")
def eliding() -> list[HashedRequest]:
    """Agents of which only the first and the newest observations stay in the prompt."""
    return workload("eliding-agent", sessions=40)


def static(policy: EvictionPolicy) -> ShadowCache:
    kv_tokens, slots = split_memory(GIB, 0.9, COST)
    return ShadowCache(ShadowShape(BLOCK, kv_tokens // BLOCK, slots, 128, 4), policy)


def elastic() -> ShadowCache:
    shape = ShadowShape(BLOCK, 1, 1, 128, 4)
    return ElasticShadowCache(shape, ValuePolicy(COST, shared=True), COST, GIB * 2**30)


def test_histories_that_agents_edit(eliding):
    lru = share_saved(static(LruPolicy()), eliding, COST)
    # Prompts come back to interior states: not all is saved by keeping the ends of sessions.
    assert 0.05 < lru < 0.5
    # Once the branch that an agent left is gone, where it left it is still where it resumes.
    assert share_saved(static(ValuePolicy(COST)), eliding, COST) >= lru + 0.1
    assert share_saved(elastic(), eliding, COST) >= lru + 0.1


@pytest.mark.parametrize("before", ["chat", "agent"])
def test_odds_are_learnt_anew_when_the_traffic_changes(eliding, before):
    other = workload(before, sessions=60, seed=1)
    for first, second in ((other, eliding), (eliding, other)):
        value, lru = static(ValuePolicy(COST)), static(LruPolicy())
        share_saved(value, first, COST)
        share_saved(lru, first, COST)
        assert share_saved(value, second, COST) >= share_saved(lru, second, COST) - SLACK
