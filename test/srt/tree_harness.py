"""Real prefix caches over small CPU pools: stock with either tree core, ours with any policy."""

from __future__ import annotations

import contextlib
import itertools
import os
from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateShape
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache, MarconiSetup
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.savings import SAVINGS
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, HybridReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

CHUNK = 8
FULL, MAMBA = ComponentType.FULL, ComponentType.MAMBA

_EXEC = SimpleNamespace(
    mamba=SimpleNamespace(
        mamba_max_states_per_path=-1, enable_mamba_extra_buffer_lazy=False, mamba_track_interval=256
    )
)


@contextlib.contextmanager
def server_context(max_states_per_path: int = -1) -> Iterator[None]:
    """The few settings a tree reads from SGLang's run-time context, without a server."""
    settings = SimpleNamespace(
        mamba=SimpleNamespace(
            **{**vars(_EXEC.mamba), "mamba_max_states_per_path": max_states_per_path}
        )
    )
    components = "sglang.srt.mem_cache.unified_cache.components.mamba"
    adapter = "sglang.srt.mem_cache.rust_tree_core.adapter"
    with contextlib.ExitStack() as stack:
        import importlib

        for module in (components, adapter):
            loaded = importlib.import_module(module)
            for name, value in (
                ("get_exec", lambda: settings),
                ("mamba_cache_chunk_size", lambda: CHUNK),
                ("mamba_checkpoint_grid", lambda page: CHUNK),
            ):
                if hasattr(loaded, name):
                    stack.enter_context(mock.patch.object(loaded, name, value))
        yield


def make_pools(
    kv_tokens: int, state_slots: int
) -> tuple[HybridReqToTokenPool, TokenToKVPoolAllocator]:
    """Tiny but real pools: one recurrent layer, one attention layer of one head and one channel."""
    shape = Mamba2StateShape.create(
        tp_world_size=1,
        intermediate_size=4,
        n_groups=1,
        num_heads=1,
        head_dim=4,
        state_size=2,
        conv_kernel=2,
    )
    requests = HybridReqToTokenPool(
        size=8,
        mamba_size=state_slots,
        mamba_spec_state_size=8,
        max_context_len=kv_tokens,
        device="cpu",
        enable_memory_saver=False,
        cache_params=Mamba2CacheParams(shape=shape, layers=[0]),
        mamba_layer_ids=[0],
        enable_mamba_extra_buffer=False,
    )
    kv = HybridLinearKVPool(
        size=kv_tokens,
        dtype=torch.float32,
        page_size=1,
        head_num=1,
        head_dim=1,
        full_attention_layer_ids=[1],
        device="cpu",
        mamba_pool=requests.mamba_pool,
    )
    allocator = TokenToKVPoolAllocator(
        kv_tokens, dtype=torch.float32, device="cpu", kvcache=kv, need_sort=False
    )
    return requests, allocator


#: A made-up model whose states weigh as much as 100 tokens of KV.
COST = ModelCost(a=10**6, b=100, kv_bytes_per_token=16, state_bytes=1600)


class TreeHarness:
    """A cache and its pools, driven as a scheduler would with one request at a time.

    Args:
        policy: Marconi policy number, or ``None`` for stock.
        core: tree core of the stock cache, "python" or "rust".
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
        self.requests, self.allocator = make_pools(kv_tokens, state_slots)
        self.kv_tokens, self.state_slots = kv_tokens, state_slots
        params = CacheInitParams(
            disable=False,
            req_to_token_pool=self.requests,
            token_to_kv_pool_allocator=self.allocator,
            page_size=1,
            tree_components=(FULL, MAMBA),
            tree_core_backend=core,
            enable_session_radix_cache=sessions,
        )
        if policy is None:
            self.cache = UnifiedRadixCache(params)
        else:
            config = MarconiConfig.from_options({"marconi_evict_policy": policy, **options})
            assert config is not None
            savings = SAVINGS[config.marconi_savings](COST)
            self.cache = MambaRadixCache(params, setup=MarconiSetup(config, COST, savings))
        self.victims: list[tuple[str, tuple[int, ...]]] = []
        self._record_victims()

    # -- one operation each

    def alloc_kv(self, tokens: int) -> torch.Tensor | None:
        """``tokens`` KV slots, evicting as a scheduler does, ``None`` if that was not enough."""
        if self.allocator.available_size() < tokens:
            self.cache.evict_for_alloc(
                EvictParams(num_tokens=tokens - self.allocator.available_size())
            )
        return self.allocator.alloc(tokens)

    def alloc_state(self) -> torch.Tensor | None:
        slot = self.requests.mamba_allocator.alloc(1)
        if slot is None:
            self.cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=1))
            slot = self.requests.mamba_allocator.alloc(1)
        return slot

    def match(self, tokens: list[int], **kwargs: object):
        return self.cache.match_prefix(MatchPrefixParams(key=radix_key(tokens), **kwargs))

    def insert(self, tokens: list[int]) -> bool:
        """Cache ``tokens`` with a state at their end; ``False`` if memory could not be found.

        The matched prefix is locked meanwhile, as a running request's is.
        """
        result = self.match(tokens)
        matched = result.device_prefix_len
        lock = self.cache.lock(result.last_device_node)
        try:
            state = self.alloc_state()
            fresh = self.alloc_kv(len(tokens) - matched) if state is not None else None
        finally:
            self.cache.unlock(lock)
        if state is None or fresh is None:
            if state is not None:
                self.requests.mamba_allocator.free(state)
            return False
        held = self.cache.path_device_indices(result.last_device_node)[:matched]
        inserted = self.cache.insert(
            InsertParams(
                key=radix_key(tokens),
                value=torch.cat([held, fresh]),
                mamba_value=state,
                prev_prefix_len=matched,
            )
        )
        if inserted.mamba_exist:
            self.requests.mamba_allocator.free(state)
        return True

    def hit(self, tokens: list[int]) -> int:
        """Tokens of ``tokens`` that a request would not have to prefill."""
        return self.match(tokens).device_prefix_len

    def lock(self, tokens: list[int]):
        return self.cache.lock(self.match(tokens).last_device_node)

    def unlock(self, lock) -> None:
        self.cache.unlock(lock)

    # -- checks

    def held_by_tree(self) -> tuple[int, int]:
        """KV tokens and states that the tree owns."""
        kv, states = self.cache.total_size()[0], len(self.cache.all_mamba_values_flatten())
        return kv, states

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

    # -- who was evicted

    def _record_victims(self) -> None:
        if not hasattr(self.cache.tree_core, "node_by_id"):
            return
        for component in self.cache.components.values():
            original = component.evict_component

            def recorded(node, *args, original=original, component=component, **kwargs):
                held = node.component_data[component.component_type].value is not None
                if held:
                    self.victims.append((component.component_type.name, path_tokens(node)))
                return original(node, *args, **kwargs)

            component.evict_component = recorded


def radix_key(tokens: list[int]) -> RadixKey:
    return RadixKey(array("q", tokens))


def path_tokens(node) -> tuple[int, ...]:
    """All tokens from the root to the end of ``node``."""
    parts: list[list[int]] = []
    while node.parent is not None:
        parts.append(list(node.key.raw_token_ids()))
        node = node.parent
    return tuple(itertools.chain.from_iterable(reversed(parts)))
