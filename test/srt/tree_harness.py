"""A cache over CPU pools that records its victims and checks that no slot is lost or held twice."""

from __future__ import annotations

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from cpu_cache import EXAMPLE_COST as COST
from cpu_cache import FULL, MAMBA, CpuCache, path_tokens, radix_key, server_context

__all__ = ["COST", "FULL", "MAMBA", "TreeHarness", "path_tokens", "radix_key", "server_context"]


class TreeHarness(CpuCache):
    """See :class:`CpuCache`; Marconi options are keywords.

    ``victims`` lists (component, tokens of the path) of everything evicted from the device, in
    order; the Rust core cannot be watched and leaves it empty.
    """

    def __init__(
        self,
        policy: int | None = None,
        *,
        core: str = "python",
        kv_tokens: int = 512,
        state_slots: int = 16,
        sessions: bool = False,
        **options: object,
    ) -> None:
        super().__init__(policy, core, kv_tokens, state_slots, sessions, COST, dict(options))
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
        kv_free = torch.cat([self.allocator.free_pages, self.allocator.release_pages]).tolist()
        assert sorted(kv_held + kv_free) == list(range(1, self.kv_tokens + 1)), "KV slots"
        states = self.cache.all_mamba_values_flatten().tolist()
        free = self.requests.mamba_allocator.free_slots.tolist()
        assert len(set(states + free)) == len(states) + len(free), "a state slot is held twice"
        assert len(states) + len(free) == self.state_slots, "a state slot is lost"
        view = getattr(self.cache, "view", None)
        if view is not None:
            assert self.cache.stats.errors == 0
            view._check()

    def _record_victims(self) -> None:
        if not hasattr(self.cache.tree_core, "node_by_id"):
            return
        for component in self.cache.components.values():
            original = component.evict_component

            def recorded(node, *args, original=original, component=component, **kwargs):
                if node.component_data[component.component_type].value is not None:
                    self.victims.append((component.component_type.name, path_tokens(node)))
                return original(node, *args, **kwargs)

            component.evict_component = recorded
