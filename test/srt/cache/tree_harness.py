"""A cache over CPU pools that records its victims and checks that no slot is lost or held twice."""

from __future__ import annotations

import os
import random

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from array import array
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from lab.cpu_cache import EXAMPLE_COST as COST
from lab.cpu_cache import FULL, MAMBA, CpuCache, path_tokens, radix_key, server_context
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.mamba_radix.rust_core.mirror import TreeMirror
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from sglang.srt.mem_cache.marconi.insight.stats import VictimKind
from sglang.srt.mem_cache.unified_cache.components.base import EvictLayer

DEVICE = EvictLayer.DEVICE
__all__ = [
    "COST",
    "FULL",
    "MAMBA",
    "TreeHarness",
    "live",
    "path_tokens",
    "radix_key",
    "random_life",
    "sequence",
    "server_context",
    "waiting_request",
]


def waiting_request(tokens: list[int], rid: str = "a") -> Any:
    """What is read of a request that waits."""
    return SimpleNamespace(
        rid=rid,
        session=None,
        origin_input_ids=array("q", tokens),
        output_ids=array("q"),
        extra_key=None,
        cache_salt=None,
        best_match_node=None,
    )


class TreeHarness(CpuCache):
    """See :class:`CpuCache`; Marconi options are keywords.

    ``victims`` lists (component, tokens of the path) of everything evicted from the device, in
    order; stock's Rust core cannot be watched and leaves it empty.

    Attributes:
        core_of_ours: the tree core of a cache with a policy, unless one is named.
    """

    core_of_ours: ClassVar[str] = "python"

    def __init__(
        self,
        policy: int | None = None,
        *,
        core: str | None = None,
        kv_tokens: int = 512,
        state_slots: int = 16,
        sessions: bool = False,
        cost: CostModel = COST,
        elastic: bool = False,
        kv_events: bool = False,
        lower_tier: LowerTier | None = None,
        **options: object,
    ) -> None:
        core = core or ("python" if policy is None else self.core_of_ours)
        super().__init__(
            policy,
            core,
            kv_tokens,
            state_slots,
            sessions,
            cost,
            dict(options),
            elastic=elastic,
            kv_events=kv_events,
            lower_tier=lower_tier,
        )
        self.victims: list[tuple[str, tuple[int, ...]]] = []
        self._record_victims()

    def lock(self, tokens: list[int]):
        return self.cache.lock(self.match(tokens).last_device_node)

    def unlock(self, lock) -> None:
        self.cache.unlock(lock)

    def held_by_tree(self) -> tuple[int, int]:
        """KV tokens and states that the tree owns."""
        return len(self.cache.all_values_flatten()), len(self.cache.all_mamba_values_flatten())

    def check(self) -> None:
        """SGLang's own sanity check, and every slot either free or held by exactly one node."""
        self.cache.sanity_check()
        kv_held = self.cache.all_values_flatten().tolist()
        states = self.cache.all_mamba_values_flatten().tolist()
        if self.elastic:
            self._check_shared(kv_held, states)
        else:
            self._check_pools(kv_held, states)
        view = getattr(self.cache, "view", None)
        if view is not None:
            assert self.cache.stats.errors == 0
            view._check()
            if isinstance(self.cache.tree, TreeMirror):
                self._check_mirror(self.cache.tree)

    def node(self, node_id: int):
        """The node of an id that a match or an insert returned."""
        policy_less = not hasattr(self.cache, "tree")
        return (self.cache.tree_core if policy_less else self.cache.tree).node_by_id(node_id)

    def states(self) -> set[tuple[int, ...]]:
        """Paths at whose ends a state is cached."""
        tree = getattr(self.cache, "tree", self.cache.tree_core)
        if isinstance(tree, TreeMirror):
            return {path_tokens(node) for node in tree.states.values()}
        return {path_tokens(node) for node in tree.lru_lists[MAMBA].cache.values()}

    def _check_mirror(self, mirror: TreeMirror) -> None:
        """The mirror of the Rust core has the core's nodes and states, and no others."""
        core = self.cache.tree_core
        nodes = list(mirror.nodes.values())
        assert sum(map(mirror.device_tokens, nodes)) == self.held_by_tree()[0]
        for node, path in zip(nodes, core.collect_path_info([n.id for n in nodes]), strict=True):
            end = path[-1]
            assert (end.node_id, end.path_end - end.path_start) == (node.id, len(node.key))
            assert end.num_children == len(node.children)
            assert [info.node_id for info in path[:-1]] == _ids_above(node)
            state = core.get_component_device_value(node.id, MAMBA)
            assert node.has_state == (state is not None)

    def _check_shared(self, kv_held: list[int], states: list[int]) -> None:
        """What is allocated is what the tree holds, and the allocator's own books agree."""
        assert self.allocator.verify_byte_accounting() == []
        for held, allocator in (
            (kv_held, self.allocator.full_attn_allocator),
            (states, self.allocator.mamba_allocator),
        ):
            assert len(set(held)) == len(held) == allocator.allocated_count()
            assert all(allocator.is_slot_allocated(slot) for slot in held)

    def _check_pools(self, kv_held: list[int], states: list[int]) -> None:
        kv_free = torch.cat([self.allocator.free_pages, self.allocator.release_pages]).tolist()
        assert sorted(kv_held + kv_free) == list(range(1, self.kv_tokens + 1)), "KV slots"
        free = self.requests.mamba_allocator.free_slots.tolist()
        assert len(set(states + free)) == len(states) + len(free), "a state slot is held twice"
        assert len(states) + len(free) == self.state_slots, "a state slot is lost"

    def _record_victims(self) -> None:
        if isinstance(getattr(self.cache, "tree", None), TreeMirror):
            self._record_counted_victims()
            return
        if self.core == "rust":
            return
        for component in self.cache.components.values():
            original = component.evict_component

            def recorded(
                node, *args, original=original, component=component, target=DEVICE, **kwargs
            ):
                held = node.component_data[component.component_type].value is not None
                if held and DEVICE in target:
                    self.victims.append((component.component_type.name, path_tokens(node)))
                return original(node, *args, target=target, **kwargs)

            component.evict_component = recorded

    def _record_counted_victims(self) -> None:
        original = self.cache.count_victim

        def recorded(node, kind, **kwargs):
            path = path_tokens(node)
            if kind is not VictimKind.STATE_ONLY:
                self.victims.append((FULL.name, path))
            if kind is not VictimKind.LEAF_KV_ONLY:
                self.victims.append((MAMBA.name, path))
            return original(node, kind, **kwargs)

        self.cache.count_victim = recorded


def _ids_above(node) -> list[int]:
    ids = []
    while node.parent.parent is not None:
        node = node.parent
        ids.append(node.id)
    return ids[::-1]


def sequence(length: int, first: int) -> list[int]:
    """``length`` tokens that share nothing with another ``first``."""
    return [first * 1000 + i for i in range(length)]


def live(machine: type[RuleBasedStateMachine], *, examples: int) -> None:
    """Run a stateful test, the same lives every time."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )


def random_life(harness: TreeHarness, seed: int, operations: int) -> list[object]:
    """Thousands of operations of every kind; returns all that a caller could observe."""
    rng = random.Random(seed)
    seen: list[object] = []
    sessions = [[rng.randrange(3) for _ in range(8)] for _ in range(6)]
    locks = []
    for _ in range(operations):
        kind = rng.random()
        which = rng.randrange(len(sessions))
        tokens = sessions[which] + [rng.randrange(3) for _ in range(rng.randrange(1, 9))]
        if kind < 0.45:
            seen.append(harness.insert(tokens))
            sessions[which] = tokens if len(tokens) < 90 else tokens[: rng.randrange(1, 20)]
        elif kind < 0.7:
            seen.append(harness.hit(tokens))
        elif kind < 0.8 and len(locks) < 3:
            locks.append(harness.lock(tokens))
        elif kind < 0.9 and locks:
            harness.unlock(locks.pop(rng.randrange(len(locks))))
        elif kind < 0.95:
            result = harness.cache.evict(EvictParams(num_tokens=rng.randrange(1, 30)))
            seen.append((result.num_tokens_evicted, result.mamba_num_evicted))
        else:
            result = harness.cache.evict(EvictParams(num_tokens=0, mamba_num=rng.randrange(1, 3)))
            seen.append((result.num_tokens_evicted, result.mamba_num_evicted))
    for lock in locks:
        harness.unlock(lock)
    harness.check()
    return seen
