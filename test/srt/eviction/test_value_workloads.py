"""Policy 3 on agents that edit their history, and when the traffic changes: not below stock LRU."""

from __future__ import annotations

import pytest
from lab.costs import split_memory
from lab.shadow_world import hashed_requests
from policies.value import FadingEvidence
from sglang.srt.marconi_utils import cost_by_name
from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest
from sglang.srt.mem_cache.marconi.advice.replay import share_saved
from sglang.srt.mem_cache.marconi.eviction.lru import LruPolicy
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.value import ReuseOdds, ValuePolicy
from sglang.srt.mem_cache.marconi.tuning.elastic_cache import ElasticShadowCache
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from traces.generator import generate
from traces.timing import Timing

COST = cost_by_name("Qwen3-Next-80B-A3B-Instruct")
BLOCK, GIB = 64, 8
#: Share of all FLOPs by which a result may be below LRU's.
SLACK = 0.003


def workload(
    shape: str, sessions: int, seed: int = 0, timing: Timing | None = None
) -> list[HashedRequest]:
    timing = timing or Timing(seed=seed)
    made = generate({shape: 1}, sessions=sessions, timing=timing, block=BLOCK)
    return list(hashed_requests(made, BLOCK))


@pytest.fixture(scope="module")
def eliding() -> list[HashedRequest]:
    """Agents of which only the first and the newest observations stay in the prompt."""
    return workload("eliding-agent", sessions=40)


def static(policy: EvictionPolicy) -> ShadowCache:
    kv_tokens, slots = split_memory(GIB, 0.9, COST)
    return ShadowCache(ShadowShape(BLOCK, kv_tokens // BLOCK, slots, 128, 4), policy)


def elastic(policy: EvictionPolicy) -> ShadowCache:
    shape = ShadowShape(BLOCK, 1, 1, 128, 4)
    return ElasticShadowCache(shape, policy, COST, GIB * 2**30)


def test_histories_that_agents_edit(eliding):
    lru = share_saved(static(LruPolicy()), eliding, COST)
    # Prompts come back to interior states: not all is saved by keeping the ends of sessions.
    assert 0.05 < lru < 0.5
    # Once the branch that an agent left is gone, where it left it is still where it resumes.
    assert share_saved(static(ValuePolicy(COST)), eliding, COST) >= lru + 0.1
    assert share_saved(elastic(ValuePolicy(COST, shared=True)), eliding, COST) >= lru + 0.1


@pytest.mark.parametrize("before", ["chat", "agent"])
def test_odds_are_learnt_anew_when_the_traffic_changes(eliding, before):
    other = workload(before, sessions=60, seed=1)
    for first, second in ((other, eliding), (eliding, other)):
        value, lru = static(ValuePolicy(COST)), static(LruPolicy())
        share_saved(value, first, COST)
        share_saved(lru, first, COST)
        assert share_saved(value, second, COST) >= share_saved(lru, second, COST) - SLACK


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_no_longer_holds_is_not_waited_for_to_fade(seed):
    timing = Timing(
        sessions_per_second=2, quiet_sessions_per_second=0.2, shift_after=300, seed=seed
    )
    chats = workload("chat", sessions=400, timing=timing)
    # The last quarter lies in the quiet time.
    parts = chats[: len(chats) * 3 // 4], chats[len(chats) * 3 // 4 :]

    def saved(cache: ShadowCache) -> list[float]:
        return [share_saved(cache, part, COST) for part in parts]

    lru = saved(static(LruPolicy()))
    for make in (static, elastic):
        shared = make is elastic
        fading = saved(make(ValuePolicy(COST, shared=shared, odds=ReuseOdds(FadingEvidence))))
        value = saved(make(ValuePolicy(COST, shared=shared)))
        assert sum(value) > sum(fading) + 0.01
        assert value[1] > lru[1] + 0.05
