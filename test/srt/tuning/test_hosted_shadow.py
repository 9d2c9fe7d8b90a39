"""The shadow with a host tier: nothing is lost or counted twice, and hits are the real cache's."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from lab.cpu_cache import CpuCache, server_context
from lab.host_tier import HostTier
from lab.replay_cache import Replay
from lab.served import BlockCost
from lab.shadow_world import ShadowWorld, copied_bytes
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
from sglang.srt.mem_cache.marconi.eviction.lru import LruPolicy
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.value import ValuePolicy
from sglang.srt.mem_cache.marconi.tuning.hosted_cache import (
    WRITE_POLICIES,
    HostedShadowCache,
    HostShape,
)
from test_tuning_shadow import BLOCK, COST, SHAPE, STEPS, chained, generated, requests

HOST = 120, 16
UNITS = BlockCost(COST, BLOCK)
POLICIES = {1: LruPolicy, 3: lambda: ValuePolicy(UNITS)}


def hosted(
    policy: EvictionPolicy, write_policy: str, host: tuple[int, int] = HOST, **changes: int
) -> HostedShadowCache:
    shape = replace(SHAPE, block_tokens=1, **changes)
    return HostedShadowCache(shape, policy, HostShape(*host, write_policy))


@pytest.mark.parametrize("write_policy", WRITE_POLICIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_slot_of_both_tiers_is_free_or_accounted_for(policy, write_policy):
    moved = 0

    @settings(max_examples=60, derandomize=True, deadline=None)
    @given(STEPS)
    def run(steps):
        nonlocal moved
        shadow = hosted(POLICIES[policy](), write_policy)
        served = {}
        for ended, finished, id, request in requests(steps):
            for before in ended:
                shadow.end(before, generated(served[before]) if finished else None)
            served[id] = request
            whole = (request.input_length - 1) // BLOCK
            shadow.begin(id, chained(list(request.prompt_ids)), whole + 1)
            check(shadow)
            if id == 30:
                moved += shadow.loaded.blocks
                shadow.flush()
        for id in served:
            shadow.end(id, None)
        check(shadow)
        assert not any(n.locks or n.state_locks or n.host_locks for n in nodes(shadow))
        moved += shadow.loaded.blocks

    run()
    assert moved > 4


def nodes(shadow: HostedShadowCache) -> list:
    return list(shadow.tree._nodes.values())


def check(shadow: HostedShadowCache) -> None:
    all_nodes, runs = nodes(shadow), list(shadow._runs.values())
    for free, held, count in (
        (shadow.kv_free, "on_device", shadow.shape.kv_blocks),
        (shadow.host_kv_free, "on_host", shadow.host.kv_blocks),
    ):
        running = sum(run.kv for run in runs) if held == "on_device" else 0
        cached = sum(n.end - n.start for n in all_nodes if getattr(n, held))
        assert free >= 0 and free + cached + running == count, held
    states = sum(n.has_state for n in all_nodes) + sum(run.states for run in runs)
    assert shadow.states_free + states == shadow.shape.state_slots
    on_host = sum(n.state_on_host for n in all_nodes)
    assert shadow.host_states_free + on_host == shadow.host.state_slots
    for node in all_nodes:
        assert node.on_device or node.on_host, "nobody has its KV"
        assert node.on_device or not node.has_state, "a state without its KV"
        assert node.children_on_device == sum(c.on_device for c in node.children.values())
        assert node.parent.on_device or not node.on_device, "KV without what leads to it"
        waits = node.state_on_host and not node.has_state
        assert (node.id in shadow.tree._host_states) == waits
    if isinstance(shadow.policy, ValuePolicy):
        shadow.tree.view.refresh(shadow.tree.now)
        shadow.policy._check()
        for node in all_nodes:
            known = node.prefix
            told = (False,) * 4
            if known is not None:
                told = known.has_state, known.is_leaf, known.host_state, known.host_kv
            alone = node.state_on_host and not node.has_state
            true = node.has_state, node.is_evictable_leaf, alone, not node.on_device
            assert told == true or (known is None and not any(true[:3]) and node.children)


#: KV blocks and states, no fewer than the device's. A smaller host may be full of copies of what
#: the device has: then the shadow asks for room once a request, as a server does, and the lab at
#: each insert.
HOSTS = [HOST, (90, 40), (400, 12)]


@pytest.mark.parametrize("host", HOSTS, ids=str)
@pytest.mark.parametrize("write_policy", ["write_through", "write_back"])
def test_hits_and_copies_are_those_of_the_real_cache(write_policy, host):
    """Under LRU one by one; what policy 3 saves is compared in the lab."""
    loaded = 0
    for seed in range(25):
        shadow = hosted(LruPolicy(), write_policy, host, chunk=128, kv_blocks=90)
        world = ShadowWorld(shadow, BLOCK, cost=UNITS, copy_rate=1.0)
        with server_context(chunk=1):
            cpu = CpuCache(
                *(1, "python", 90, SHAPE.state_slots), cost=UNITS, lower_tier=LowerTier.HOST
            )
            tier = HostTier(cpu, *host, write_policy)
            replay = Replay(cpu, BLOCK, tier=tier, copy_rate=1.0)
            for _, _, _, request in requests(random_steps(seed)):
                ours, real = world.serve(request), replay.serve(request)
                assert ours.served and real.served
                assert ours.hit_tokens == real.hit_tokens
                assert ours.loaded_tokens == real.loaded_tokens
                assert ours.copy_seconds == pytest.approx(real.copy_seconds)
            cpu.cache.sanity_check()
        copied = {"written": tier.written.bytes(UNITS), "loaded": tier.loaded.bytes(UNITS)}
        assert copied_bytes(shadow, UNITS) == copied
        loaded += tier.loaded.states
    assert loaded > 20


def random_steps(seed: int) -> list[tuple[int, ...]]:
    """As :data:`STEPS`, all with an answer: without, a request needs no further state."""
    rng = random.Random(seed)
    most = (4, 6, 20, 9, BLOCK - 1, 3)
    return [tuple(rng.randint(at == 3, m) for at, m in enumerate(most)) for _ in range(40)]
