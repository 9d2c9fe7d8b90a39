"""Policy 3 on sessions beside one-shot prompts: it learns the same, whatever looks come between."""

from __future__ import annotations

import random
from itertools import count

import pytest
from lab.cpu_cache import CpuCache, server_context

#: State slots, fewer than the sessions and the one-shot prompts between two of their turns.
SLOTS = 48
TURNS, FIRST, MORE = 8, 384, 128


def traffic(seed: int, requests: int = 1000, sessions: int = 40) -> list[list[int]]:
    """Sessions that return after 20 to 60 requests, beside as many prompts that never do."""
    rng, fresh = random.Random(seed), count(10**6)

    def new(tokens: int) -> list[int]:
        return [next(fresh) for _ in range(tokens)]

    live = [(rng.uniform(0, 60), new(FIRST)) for _ in range(sessions)]
    prompts: list[list[int]] = []
    while len(prompts) < requests:
        due, history = min(live, key=lambda one: one[0])
        if rng.random() < 0.5 or due > len(prompts):
            prompts.append(new(FIRST))
            continue
        live.remove((due, history))
        prompts.append(list(history))
        ends = len(history) == FIRST + (TURNS - 1) * MORE
        again = new(FIRST) if ends else history + new(MORE)
        live.append((len(prompts) + rng.uniform(20, 60), again))
    return prompts


def hits(policy: int | None, prompts: list[list[int]], look_every: int) -> float:
    """Share of tokens that hit after the first third; a look that finds nothing now and then."""
    with server_context(chunk=64):
        cache = CpuCache(policy=policy, core="rust", kv_tokens=60_000, state_slots=SLOTS)
        hit = asked = 0
        for number, prompt in enumerate(prompts):
            if look_every and number % look_every == 0:
                cache.match([5])
            if number >= len(prompts) // 3:
                hit += cache.look(prompt).device_prefix_len
                asked += len(prompt)
            assert cache.insert(prompt)
    return hit / asked


@pytest.mark.parametrize("seed", [3, 5])
def test_no_look_and_no_seed_keeps_policy_3_from_learning_who_returns(seed: int):
    prompts = traffic(seed)
    assert hits(None, prompts, 0) < 0.05
    for look_every in (0, 4):
        assert hits(3, prompts, look_every) > 0.4, f"a look in {look_every} requests"
