"""Every policy on the Rust core with a host tier is its twin on the Python core."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, rule
from lab.host_tier import HostTier
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
from sglang.srt.mem_cache.marconi.tree import NO_NAMESPACE
from sglang.srt.mem_cache.unified_cache.components.base import CacheTransferPhase
from test_faults import break_at_random, slots_are_whole
from test_rust_core import TOKENS, Twins, match
from tree_harness import FULL, MAMBA, TreeHarness, live, path_tokens, server_context

#: Tokens and states that the host holds: much, or next to nothing.
HOSTS = {"large": (80, 8), "tiny": (6, 1)}


class HostedTwins(Twins):
    """One history on both cores, with copies under way and a host that forgets too."""

    write_policy = "write_back"
    host = "large"

    kept = Bundle("kept")

    def __init__(self) -> None:
        super().__init__()
        self.tiers = [
            HostTier(harness, *HOSTS[self.host], self.write_policy) for harness in self.twins
        ]

    def teardown(self) -> None:
        for tier in self.tiers:
            tier.complete()
        super().teardown()

    @rule(target=kept, tokens=TOKENS)
    def insert_and_return(self, tokens: list[int]) -> list[int]:
        self.insert(tokens, NO_NAMESPACE)
        return tokens

    @rule(tokens=kept | TOKENS)
    def prefetch(self, tokens: list[int]) -> None:
        """Storage has all of ``tokens``, and a state at their end."""
        for tier in self.tiers:
            tier.prefetch(tokens)
        self.both(lambda harness: (None, None))

    @rule(tokens=kept)
    def load_back(self, tokens: list[int]) -> None:
        def loaded(harness: TreeHarness) -> Any:
            result = match(harness, tokens, NO_NAMESPACE)
            done = harness.cache.load_back(result.best_match_node)
            return (done, result.host_hit_length, result.mamba_host_hit_length), None

        self.both(loaded)

    @rule(writes=st.integers(0, 3), loads=st.integers(0, 3))
    def complete(self, writes: int, loads: int) -> None:
        for tier in self.tiers:
            tier.complete(writes, loads)
        self.both(lambda harness: (None, None))

    @rule(kv=st.integers(0, 30), states=st.integers(0, 3))
    def the_host_forgets(self, kv: int, states: int) -> None:
        def forgot(harness: TreeHarness) -> Any:
            cache = harness.cache
            return (cache.evict_host(kv, FULL), cache.evict_host(states, MAMBA)), None

        self.both(forgot)

    def both(self, operation: Any) -> tuple[Any, Any]:
        answers = super().both(operation)
        python, rust = (whole_tree(harness) for harness in self.twins)
        assert python == rust
        used = [tier.used() for tier in self.tiers]
        assert used[0] == used[1], used
        counters = [harness.cache.stats.as_dict() for harness in self.twins]
        for counter in counters:
            del counter["victim_digest"]
        assert counters[0] == counters[1]
        return answers


def evict(harness: TreeHarness, kv: int, states: int) -> tuple[int, int]:
    result = harness.cache.evict(EvictParams(num_tokens=kv, mamba_num=states))
    return result.num_tokens_evicted, result.mamba_num_evicted


def whole_tree(harness: TreeHarness) -> dict[tuple[int, ...], tuple[bool, ...]]:
    """What the view can ask of each node."""
    tree = harness.cache.tree
    found = {}
    stack = list(tree.root_node.children.values())
    while stack:
        node = stack.pop()
        stack.extend(node.children.values())
        found[path_tokens(node), len(node.key)] = (
            tree.holds_state(node),
            tree.state_survives(node),
            tree.state_is_locked(node),
            tree.is_evictable_leaf(node),
        )
    return found


def random_life(harness: TreeHarness, tier: HostTier, seed: int, operations: int) -> None:
    """Conversations that come back, while copies are under way and the host forgets."""
    rng = random.Random(seed)
    sessions = [[rng.randrange(3) for _ in range(8)] for _ in range(6)]
    for _ in range(operations):
        kind, which = rng.random(), rng.randrange(len(sessions))
        tokens = sessions[which]
        if kind < 0.45:
            tokens = tokens + [rng.randrange(3) for _ in range(rng.randrange(1, 9))]
            harness.insert(tokens)
            sessions[which] = tokens if len(tokens) < 60 else tokens[: rng.randrange(1, 20)]
        elif kind < 0.7:
            harness.cache.load_back(harness.match(tokens).best_match_node)
        elif kind < 0.8:
            tier.prefetch(tokens)
        elif kind < 0.9:
            tier.complete(rng.randrange(3), rng.randrange(3))
        elif kind < 0.95:
            harness.cache.evict_host(rng.randrange(20), FULL)
            harness.cache.evict_host(rng.randrange(3), MAMBA)
        else:
            evict(harness, rng.randrange(30), rng.randrange(3))
    tier.complete()


MIRROR = ("copied_kv", "state_lies_at", "freed_kv", "freed_state", "lock", "learn", "descend")
HOST_ORDER = ("_lock_what_stays", "_unlock_lowest", "_lock", "_unlock", "let_go")
CORE = ("_ask", "_ask_state", "_gone", "_forgotten", "_backed_up", "_leaving_device", "_locked")
CORE += ("_ask_all", "_ask_ids", "_ask_copies", "_ask_slot", "_passed", "_is_to_back_up")
CORE += ("_prefetched", "_passed_over", "_excess_above")


@pytest.mark.parametrize("write_policy", ["write_back", "write_through"])
@pytest.mark.parametrize(
    ("part", "name"),
    [
        *(("mirror", name) for name in MIRROR),
        *(("core", name) for name in CORE),
        *(("policy", name) for name in ("victim", "on_insert", "is_worth_backup")),
        *(("host", name) for name in HOST_ORDER),
    ],
)
def test_a_fault_costs_the_policy_and_nothing_else(part: str, name: str, write_policy: str):
    with server_context():
        harness = TreeHarness(
            3, core="rust", kv_tokens=160, state_slots=9, lower_tier=LowerTier.HOST
        )
        tier = HostTier(harness, 120, 8, write_policy)
        random_life(harness, tier, 1, 40)
        core = harness.cache.tree_core
        cache = harness.cache
        owners = {"mirror": core.mirror, "core": core, "policy": cache.policy}
        owner = {**owners, "host": cache._host_order}[part]
        mend = break_at_random(owner, name, 7)
        random_life(harness, tier, 2, 400)
        raised, stats = mend(), harness.cache.stats
        assert not raised or stats.errors + stats.fallbacks.total() > 0, "nobody counted it"
        for seed in range(3, 60):
            random_life(harness, tier, seed, 80)
            if harness.cache.view.is_sound:
                break
        assert harness.cache.view.is_sound, "it did not recover"
        harness.cache.view._check()
        before = stats.fallbacks.total()
        assert evict(harness, 8, 2)[0] >= 8
        assert stats.fallbacks.total() == before, "the policy does not choose again"
        slots_are_whole(harness)


def copies_in_the_mirror(harness: TreeHarness) -> dict[int, Any]:
    """Of each node that the mirror knows: the slots of its KV's copy, and where its state lies."""
    mirror = harness.cache.tree
    slots = {node.id: slot for slot, node in mirror._state_at.items() if node.host_state}
    return {
        node.id: (None if node.host_kv is None else node.host_kv.tolist(), slots.get(node.id))
        for node in mirror.nodes.values()
    }


def copies_in_the_core(harness: TreeHarness) -> dict[int, Any]:
    core = harness.cache.tree_core
    found = {}
    for id in harness.cache.tree.nodes:
        kv = core.build_storage_backup_spec(id, False)
        load = None
        if core.component_has_host_value_only(id, MAMBA):
            (transfer, *_) = core.build_hicache_transfers(MAMBA, id, CacheTransferPhase.LOAD_BACK)
            load = int(transfer.host_indices[0])
        found[id] = (None if kv is None else kv.host_value.tolist(), load)
    return found


@pytest.mark.parametrize("write_policy", ["write_back", "write_through"])
@pytest.mark.parametrize("lost", ["copied_kv", "freed_kv", "freed_state", "all"])
def test_a_rebuild_learns_anew_what_the_host_holds(lost: str, write_policy: str):
    with server_context():
        harness = TreeHarness(
            3, core="rust", kv_tokens=160, state_slots=9, lower_tier=LowerTier.HOST
        )
        tier = HostTier(harness, 120, 8, write_policy)
        cache, mirror = harness.cache, harness.cache.tree
        random_life(harness, tier, 1, 60)
        if lost == "all":
            mirror.clear()
            cache.view.is_sound = False
        else:
            mend = break_at_random(mirror, lost, 7)
            random_life(harness, tier, 2, 200)
            assert mend()
        for seed in range(3, 60):
            random_life(harness, tier, seed, 20)
            if cache.view.is_sound:
                break
        assert cache.stats.view_rebuilds
        assert copies_in_the_mirror(harness) == copies_in_the_core(harness)
        # What it knows of every slot, it need not look for among all nodes.
        known: list[bool] = []

        def noting(freed: Any) -> Any:
            def noted(slots: Any) -> Any:
                node = freed(slots)
                known.append(node is not None)
                return node

            return noted

        mirror.freed_kv, mirror.freed_state = noting(mirror.freed_kv), noting(mirror.freed_state)
        random_life(harness, tier, 60, 200)
        assert len(known) > 20 and all(known)
        assert copies_in_the_mirror(harness) == copies_in_the_core(harness)
        cache.view._check()


VARIANTS = {
    "lru": (1, {}),
    "marconi": (2, {}),
    "value": (3, {}),
    "value_state_only": (3, {"marconi_evict_pools": "state"}),
    "lru_judicious": (1, {"marconi_admission": "judicious"}),
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("write_policy", ["write_back", "write_through"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_history_one_order_of_victims(variant: str, write_policy: str, host: str) -> None:
    policy, options = VARIANTS[variant]
    twins = type(
        "Twins",
        (HostedTwins,),
        {
            "policy": policy,
            "options": {"lower_tier": LowerTier.HOST, **options},
            "write_policy": write_policy,
            "host": host,
        },
    )
    live(twins, examples=20)
