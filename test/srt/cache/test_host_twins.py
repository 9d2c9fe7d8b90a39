"""Both tree cores with a host tier tell the view the same in the same order, in long lives too.

A change that one core tells of sooner than the other is taken in before another request, gets
another place among equals, or lets the policy see a moment that the other never saw.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from lab.host_tier import HostTier
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
from test_host_tier import whole_tree
from tree_harness import FULL, MAMBA, TreeHarness, path_tokens, radix_key, server_context

#: Tokens and states that the host holds.
HOSTS = [(120, 8), (60, 20), (6, 1)]


class Life:
    """One cache with a host tier, and what its requests hold."""

    def __init__(self, policy: int, core: str, write_policy: str, host: tuple[int, int]) -> None:
        self.harness = TreeHarness(
            policy, core=core, kv_tokens=160, state_slots=9, lower_tier=LowerTier.HOST
        )
        self.tier = HostTier(self.harness, *host, write_policy)
        self.cache: Any = self.harness.cache
        self.held: list[Callable[[], object]] = []
        self.chosen: list[tuple[object, object]] = []
        choose = self.cache.choose_victim

        def chosen(pool: Any, excluding: Any = ()) -> Any:
            node = choose(pool, excluding)
            self.chosen.append((pool, None if node is None else path_tokens(node)))
            return node

        self.cache.choose_victim = chosen

    def lock(self, tokens: list[int], skipped: tuple[Any, ...]) -> None:
        node = self.harness.match(tokens).last_device_node
        receipt = self.cache.inc_lock_ref(node, skipped).to_dec_params()
        self.held.append(lambda: self.cache.dec_lock_ref(node, receipt))

    def pin(self, tokens: list[int]) -> None:
        core = self.cache.tree_core
        node = core.match_full_device_prefix(radix_key(tokens))[1]
        core.inc_full_pin(node)
        self.held.append(lambda: core.dec_full_pin(node))

    def evict(self, kv: int, states: int) -> tuple[int, int]:
        result = self.cache.evict(EvictParams(num_tokens=kv, mamba_num=states))
        return result.num_tokens_evicted, result.mamba_num_evicted

    def told(self) -> dict[str, object]:
        """All that a decision to come depends on, without bringing anything up to date."""
        view, find = self.cache.view, self.cache.tree.find
        order = self.cache._host_order
        return {
            "victims": self.harness.victims,
            "chosen": self.chosen,
            "marked": [path_tokens(node) for node in view._marked.values()],
            "moved": [path_tokens(find(id)) for id in view.moved],
            "locked": order and [path_tokens(find(id)) for id in order._locks],
            "tree": whole_tree(self.harness),
            "host": self.tier.used(),
            "stats": self.cache.stats.as_dict() | {"victim_digest": None},
        }


def operations(seed: int, count: int) -> list[Callable[[Life], object]]:
    """Conversations that come back, hold what they use, and share a host that forgets."""
    rng = random.Random(seed)
    sessions = [[rng.randrange(3) for _ in range(8)] for _ in range(6)]
    done: list[Callable[[Life], object]] = []
    held = 0
    for _ in range(count):
        kind, which = rng.random(), rng.randrange(len(sessions))
        tokens, one, other = sessions[which], rng.randrange(30), rng.randrange(3)
        if kind < 0.4:
            tokens = tokens + [rng.randrange(3) for _ in range(rng.randrange(1, 9))]
            sessions[which] = tokens if len(tokens) < 60 else tokens[: rng.randrange(1, 20)]
            done.append(lambda life, t=tokens: life.harness.insert(t))
        elif kind < 0.55:
            done.append(lambda life, t=tokens: life.harness.hit(t))
        elif kind < 0.65:
            done.append(
                lambda life, t=tokens: life.cache.load_back(life.harness.match(t).best_match_node)
            )
        elif kind < 0.7:
            done.append(lambda life, t=tokens: life.tier.prefetch(t))
        elif kind < 0.76:
            done.append(lambda life, w=one % 3, r=other: life.tier.complete(w, r))
        elif kind < 0.82 and held < 3:
            held += 1
            skipped = (MAMBA,) if one % 3 == 0 else ()
            if one % 5 == 0:
                done.append(lambda life, t=tokens: life.pin(t))
            else:
                done.append(lambda life, t=tokens, s=skipped: life.lock(t, s))
        elif kind < 0.9 and held:
            held -= 1
            done.append(lambda life, at=one % (held + 1): life.held.pop(at)())
        elif kind < 0.95:
            done.append(lambda life, n=one: life.cache.evict_host(n, FULL))
            done.append(lambda life, n=other: life.cache.evict_host(n, MAMBA))
        else:
            done.append(lambda life, n=one, m=other: life.evict(n, m))
    return done


@pytest.mark.parametrize("host", HOSTS, ids=str)
@pytest.mark.parametrize("write_policy", ["write_back", "write_through"])
@pytest.mark.parametrize("policy", [2, 3])
def test_long_lives_are_told_alike(policy: int, write_policy: str, host: tuple[int, int]):
    with server_context():
        for seed in range(3):
            lives = [Life(policy, core, write_policy, host) for core in ("python", "rust")]
            for at, operation in enumerate(operations(seed, 300)):
                python, rust = (operation(life) for life in lives)
                if isinstance(python, int | tuple):
                    assert python == rust, f"seed {seed}, operation {at}"
                python, rust = (life.told() for life in lives)
                assert python == rust, f"seed {seed}, operation {at}"
            for life in lives:
                while life.held:
                    life.held.pop()()
                life.tier.complete()
                life.harness.check()
                assert not life.cache.stats.fallbacks


@pytest.mark.parametrize("core", ["python", "rust"])
def test_what_is_not_marked_is_as_the_tree_is(core: str):
    """A load from the host ends the parent's time as an evictable leaf; a lock there tells."""
    with server_context():
        for seed in range(6):
            life = Life(2, core, "write_back", HOSTS[0])
            view, tree = life.cache.view, life.cache.tree
            for at, operation in enumerate(operations(seed, 200)):
                operation(life)
                for node in view._nodes():
                    notes = view._notes.get(node.id)
                    if node.id in view._marked or notes is None or notes.prefix is None:
                        continue
                    assert notes.prefix.is_leaf == tree.is_evictable_leaf(node), (seed, at)
                    assert notes.prefix.state_locked == tree.state_is_locked(node), (seed, at)
                    assert notes.prefix.children == len(node.children), (seed, at)
