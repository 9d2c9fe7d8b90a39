"""The policy chooses what the host forgets: of what, by which locks, and what returns counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from lab.host_tier import HostTier
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
from sglang.srt.mem_cache.marconi.eviction.policy import orders_host
from sglang.srt.mem_cache.marconi.prefix import HostPool
from test_host_tier import random_life
from tree_harness import FULL, MAMBA, TreeHarness, path_tokens, sequence, server_context

CORES = ("python", "rust")
#: A tree core, and whether states and KV share their memory on the device.
SETUPS = (("python", False), ("rust", False), ("python", True))


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with server_context():
        yield


def hosted(
    policy: int = 3,
    core: str = "rust",
    write_policy: str = "write_through",
    host: tuple[int, int] = (400, 40),
    **options: Any,
) -> tuple[TreeHarness, HostTier]:
    harness = TreeHarness(
        policy, core=core, kv_tokens=160, state_slots=9, lower_tier=LowerTier.HOST, **options
    )
    return harness, HostTier(harness, *host, write_policy)


def leave_device(harness: TreeHarness, tier: HostTier) -> None:
    """All that nobody holds lies on the host alone."""
    tier.complete()
    harness.cache.evict(EvictParams(num_tokens=1000, mamba_num=100))
    tier.complete()
    assert harness.held_by_tree() == (0, 0)


def resumes_at(harness: TreeHarness, tokens: list[int]) -> int:
    """Tokens of a prompt that the device or the host has, with a state at their end."""
    found = harness.look(tokens)
    return int(found.device_prefix_len + found.host_hit_length)


def on_host(harness: TreeHarness) -> dict[HostPool, set[tuple[int, ...]]]:
    """By pool, the paths of which the host could forget something."""
    tree = harness.cache.tree
    found: dict[HostPool, set[tuple[int, ...]]] = {pool: set() for pool in HostPool}
    stack = list(tree.root_node.children.values())
    while stack:
        node = stack.pop()
        stack.extend(node.children.values())
        if not tree.kv_on_host_alone(node):
            continue
        if not node.children:
            found[HostPool.KV].add(path_tokens(node))
        if tree.state_on_host_alone(node):
            found[HostPool.STATE].add(path_tokens(node))
    return found


def offered(harness: TreeHarness, pool: HostPool) -> set[tuple[int, ...]]:
    """What the policy offers of a pool, one after the other."""
    cache, passed = harness.cache, set[int]()
    paths = set()
    while (node := cache.choose_victim(pool, passed)) is not None:
        passed.add(node.id)
        paths.add(path_tokens(node))
    return paths


def locked(harness: TreeHarness) -> set[tuple[int, ...]]:
    cache = harness.cache
    return {path_tokens(cache.tree.node_by_id(id)) for id in cache._host_order._locks}


@pytest.mark.parametrize("write_policy", ["write_back", "write_through"])
@pytest.mark.parametrize(("core", "elastic"), SETUPS)
def test_all_that_lies_on_the_host_alone_is_locked_and_can_be_chosen(
    core: str, elastic: bool, write_policy: str
):
    harness, tier = hosted(core=core, write_policy=write_policy, host=(100, 7), elastic=elastic)
    for seed in range(40):
        random_life(harness, tier, seed, 20)
        harness.cache.evict_host(1, MAMBA)
        lies_there = on_host(harness)
        for pool in HostPool:
            assert offered(harness, pool) == lies_there[pool]
        harness.cache._host_order._lock_what_stays()
        assert locked(harness) == lies_there[HostPool.KV] | lies_there[HostPool.STATE]
    assert not harness.cache.stats.fallbacks
    harness.check()
    # Nothing but the policy's locks held it.
    tier.complete()
    leave_device(harness, tier)
    harness.cache.evict_host(1000, FULL)
    assert tier.used() == (0, 0)


@pytest.mark.parametrize("core", CORES)
def test_the_host_keeps_what_is_worth_more_than_what_was_used_later(core: str):
    """A tail goes on; a state that the next turn superseded does not, however late it came."""
    kept = {}
    for policy in (1, 3):
        harness, tier = hosted(policy, core)
        harness.insert(sequence(20, 1))
        harness.insert(sequence(10, 2))
        harness.insert(sequence(20, 2))
        leave_device(harness, tier)
        assert harness.cache.evict_host(1, MAMBA) == 1
        prompts = {"tail": sequence(20, 1), "superseded": sequence(10, 2)}
        kept[policy] = {
            name for name, tokens in prompts.items() if resumes_at(harness, tokens) == len(tokens)
        }
    assert kept == {1: {"superseded"}, 3: {"tail"}}


@pytest.mark.parametrize("write_policy", ["write_back", "write_through"])
@pytest.mark.parametrize("core", CORES)
def test_a_return_from_the_host_is_a_use_at_its_age(core: str, write_policy: str):
    harness, tier = hosted(core=core, write_policy=write_policy)
    cache, policy = harness.cache, harness.cache.policy
    prompt = sequence(20, 1)
    harness.insert(prompt)
    node = harness.look(prompt).best_match_node
    cache.view.refresh()
    policy._check()
    used: list[tuple[int, int]] = []
    original = policy._observations.use
    policy._observations.use = lambda watched: (
        used.append((watched.uses, policy._now - watched.stamp)),
        original(watched),
    )
    before = cache.view.now
    leave_device(harness, tier)
    for _ in range(200):
        cache.view.tick()
    assert cache.load_back(node)
    tier.complete()
    harness.match(prompt)
    policy._check()
    ((uses, age),) = used
    assert uses == 0
    assert 200 <= age <= cache.view.now - before
    watched = policy._watched[node]
    assert (watched.uses, watched.stamp) == (1, cache.view.now)
    assert not policy._evicted


@pytest.mark.parametrize("core", CORES)
def test_what_another_holds_on_the_host_is_offered_once_and_stays(core: str):
    harness, tier = hosted(core=core)
    for session in (1, 2):
        harness.insert(sequence(20, session))
    leave_device(harness, tier)
    first = harness.look(sequence(20, 1)).best_match_node
    held = harness.cache.inc_host_lock_ref(first).to_dec_params()
    assert harness.cache.evict_host(1000, FULL) == 20
    assert harness.cache.evict_host(1, MAMBA) == 0
    harness.cache.dec_host_lock_ref(first, held)
    assert resumes_at(harness, sequence(20, 1)) == 20
    assert resumes_at(harness, sequence(20, 2)) == 0
    assert harness.cache.evict_host(1000, FULL) == 20


@pytest.mark.parametrize("core", CORES)
def test_kv_that_no_state_ends_goes_first(core: str):
    harness, tier = hosted(core=core)
    for tokens in (sequence(20, 1), sequence(10, 2), sequence(20, 2)):
        harness.insert(tokens)
    leave_device(harness, tier)
    first = harness.look(sequence(20, 1)).best_match_node
    assert harness.cache.evict_host(1, MAMBA) == 1
    held = harness.cache.inc_host_lock_ref(first).to_dec_params()
    assert harness.cache.evict_host(1, MAMBA) == 1
    harness.cache.dec_host_lock_ref(first, held)
    # Of the second session ten tokens of KV are left, used later than the first session.
    assert tier.used() == (30, 1)
    assert harness.cache.evict_host(1, FULL) == 10
    assert resumes_at(harness, sequence(20, 1)) == 20


@pytest.mark.parametrize("core", CORES)
def test_an_error_leaves_the_host_to_lru_and_is_counted(core: str):
    harness, tier = hosted(core=core)
    for session in (1, 2, 3):
        harness.insert(sequence(20, session))
    leave_device(harness, tier)
    harness.cache.evict_host(0, MAMBA)
    victim = harness.cache.policy.victim
    harness.cache.policy.victim = lambda *_: 1 / 0
    assert harness.cache.evict_host(1, FULL) == 20
    assert harness.cache.stats.fallbacks == {"host_kv": 1}
    assert locked(harness) == set()
    harness.cache.policy.victim = victim
    assert harness.cache.evict_host(1, FULL) == 20
    assert harness.cache.stats.fallbacks == {"host_kv": 1}
    assert len(locked(harness)) == 1


@pytest.mark.parametrize("write_policy", ["write_back", "write_through"])
@pytest.mark.parametrize("core", CORES)
def test_an_eviction_finds_few_locks_to_take(core: str, write_policy: str):
    """They are taken as prefixes move: else the first eviction from a full host takes them all."""
    harness, tier = hosted(core=core, write_policy=write_policy, host=(4000, 400))
    cache = harness.cache
    for session in range(200):
        harness.insert(sequence(10, session))
        tier.complete()
    taken: list[int] = []
    lock = cache._host_order._lock
    cache._host_order._lock = lambda id: (taken.append(id), lock(id))
    assert cache.evict_host(1, FULL) == 10
    assert len(taken) <= 16
    assert len(on_host(harness)[HostPool.KV]) > 150


def test_a_flush_forgets_the_locks():
    harness, tier = hosted()
    harness.insert(sequence(20, 1))
    leave_device(harness, tier)
    harness.cache.evict_host(0, FULL)
    assert locked(harness)
    harness.cache.reset()
    assert not locked(harness)
    assert not harness.cache.view.moved


@pytest.mark.parametrize(
    ("policy", "options"),
    [(1, {}), (2, {}), (3, {"sessions": True}), (3, {"marconi_evict_pools": "state"})],
)
def test_else_the_host_is_in_sglangs_own_order(policy: int, options: dict[str, Any]):
    harness, _ = hosted(policy, "python", **options)
    assert harness.cache._host_order is None
    assert not orders_host(harness.cache.policy)
