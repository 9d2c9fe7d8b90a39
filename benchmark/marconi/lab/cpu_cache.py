"""Real prefix caches over small pools, without a server: stock's two cores and ours."""

from __future__ import annotations

import contextlib
import importlib
import itertools
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateShape
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.allocator import (
    BaseTokenToKVPoolAllocator,
    TokenToKVPoolAllocator,
)
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.mamba_radix.rust_core.mirror import Segment
from sglang.srt.mem_cache.mamba_radix.shared_memory import is_shared
from sglang.srt.mem_cache.mamba_radix.tuning import MambaRadixTuning, make_tuning
from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache, MarconiSetup
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.savings import SAVINGS, CostModel
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, HybridReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.runtime_context import get_parallel

from lab.unified_pools import make_unified_pools

FULL, MAMBA = ComponentType.FULL, ComponentType.MAMBA

#: A made-up model whose state weighs as much as 100 tokens of KV.
EXAMPLE_COST = ModelCost(a=10**6, b=100, kv_bytes_per_token=16, state_bytes=1600)


@contextlib.contextmanager
def server_context(chunk: int = 8, max_states_per_path: int = -1) -> Iterator[None]:
    """The few settings that a tree reads from a server's run-time context, where none runs.

    Args:
        chunk: depths at which states may lie, in tokens.
        max_states_per_path: as ``--mamba-max-states-per-path``.
    """
    settings = SimpleNamespace(
        mamba=SimpleNamespace(
            mamba_max_states_per_path=max_states_per_path,
            enable_mamba_extra_buffer_lazy=False,
            mamba_track_interval=256,
        )
    )
    answers = {
        "get_exec": lambda: settings,
        "mamba_cache_chunk_size": lambda: chunk,
        "mamba_checkpoint_grid": lambda page: chunk,
    }
    readers = (
        "sglang.srt.mem_cache.unified_cache.components.mamba",
        "sglang.srt.mem_cache.rust_tree_core.adapter",
        "sglang.srt.mem_cache.mamba_radix.core",
        "sglang.srt.mem_cache.mamba_radix.tuning",
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(get_parallel().override(attn_dcp_size=1, attn_dcp_rank=0))
        for reader in map(importlib.import_module, readers):
            for name, answer in answers.items():
                if hasattr(reader, name):
                    stack.enter_context(mock.patch.object(reader, name, answer))
        yield


def make_pools(
    kv_tokens: int, state_slots: int, device: str = "cpu", context_tokens: int = 64
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
        max_context_len=context_tokens,
        device=device,
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
        device=device,
        mamba_pool=requests.mamba_pool,
    )
    allocator = TokenToKVPoolAllocator(
        kv_tokens, dtype=torch.float32, device=device, kvcache=kv, need_sort=False
    )
    return requests, allocator


@dataclass
class CpuCache:
    """A cache and its pools, driven as a scheduler would with one request at a time.

    Use it inside :func:`server_context`.

    Attributes:
        policy: Marconi policy number, or a policy of one's own; ``None`` for stock. One that has
            a method ``attach`` is given the tree that it serves.
        core: tree core, "python" or "rust".
        options: further Marconi options, by field name.
        elastic: the pools share their bytes, as under ``--enable-unified-memory``; a policy of
            one's own is then one that orders both.
        kv_events: the cache tells of the KV blocks that come and go.
        kv_order: as ``--radix-eviction-policy``: SGLang's own order of KV leaves.
        kv_order_config: as ``--radix-eviction-policy-config``, by keyword.
        device: where the pools lie.
        context_tokens: longest request that a row of the request pool holds.
        lower_tier: what the cache is to expect below the device; whoever says so puts it there.
        tunes: start the tuner and the recorder that the options ask for, as a server does.
    """

    policy: int | EvictionPolicy | None = None
    core: str = "python"
    kv_tokens: int = 512
    state_slots: int = 16
    sessions: bool = False
    cost: CostModel = EXAMPLE_COST
    options: dict[str, Any] = field(default_factory=dict)
    kv_order: str = "lru"
    kv_order_config: dict[str, Any] | None = None
    elastic: bool = False
    kv_events: bool = False
    device: str = "cpu"
    context_tokens: int = 64
    tunes: bool = False
    lower_tier: LowerTier | None = None

    def __post_init__(self) -> None:
        self.requests, self.allocator = self._make_pools()
        params = CacheInitParams(
            disable=False,
            req_to_token_pool=self.requests,
            token_to_kv_pool_allocator=self.allocator,
            page_size=1,
            tree_components=(FULL, MAMBA),
            tree_core_backend=self.core,
            eviction_policy=self.kv_order,
            eviction_policy_config=self.kv_order_config,
            enable_session_radix_cache=self.sessions,
            enable_kv_cache_events=self.kv_events,
        )
        if self.policy is None:
            self.cache = UnifiedRadixCache(params)
            return
        own = None if isinstance(self.policy, int) else self.policy
        number = self.policy if own is None else 2
        config = MarconiConfig.from_options({"marconi_evict_policy": number, **self.options})
        assert config is not None
        savings = SAVINGS[config.marconi_savings](self.cost)
        setup = MarconiSetup(
            config,
            self.cost,
            savings,
            policy=own,
            shared_memory=is_shared(self.allocator),
            lower_tier=self.lower_tier,
            make_tuning=self._make_tuning(params, config),
        )
        self.cache = MambaRadixCache(params, setup=setup)
        attach = getattr(own, "attach", None)
        if attach is not None:
            attach(self.cache.tree)

    def _make_tuning(
        self, params: CacheInitParams, config: MarconiConfig
    ) -> Callable[..., MambaRadixTuning] | None:
        if not self.tunes:
            return None
        assert isinstance(self.cost, ModelCost)
        return partial(make_tuning, params, config, self.cost)

    def _make_pools(self) -> tuple[HybridReqToTokenPool, BaseTokenToKVPoolAllocator]:
        if not self.elastic:
            return make_pools(self.kv_tokens, self.state_slots, self.device, self.context_tokens)
        weight = self.cost.state_bytes / self.cost.kv_bytes_per_token
        return make_unified_pools(
            self.kv_tokens, self.state_slots, weight, self.device, self.context_tokens
        )

    def alloc_kv(self, tokens: int) -> torch.Tensor | None:
        """``tokens`` KV slots, evicting as a scheduler does; ``None`` if that was not enough."""
        missing = tokens - self.allocator.available_size()
        if missing > 0:
            self.cache.evict_for_alloc(EvictParams(num_tokens=missing))
        slots: torch.Tensor | None = self.allocator.alloc(tokens)
        return slots

    def alloc_state(self, count: int = 1) -> torch.Tensor | None:
        """``count`` state slots, evicting as a scheduler does; ``None`` if that was not enough."""
        allocator = self.requests.mamba_allocator
        missing = count - allocator.schedulable_available_size()
        if missing > 0:
            self.cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=missing))
        slots: torch.Tensor | None = allocator.alloc(count)
        # A view would keep the allocator's whole list alive for as long as the state is cached.
        return None if slots is None else slots.clone()

    @staticmethod
    def key(tokens: list[int]) -> RadixKey:
        return radix_key(tokens)

    def look(self, tokens: list[int], **kwargs: Any) -> Any:
        """As the scheduler looks a waiting request up: no use."""
        return self.look_up(radix_key(tokens), **kwargs)

    def look_up(self, key: RadixKey, **kwargs: Any) -> Any:
        """The same with a key that was made before."""
        return self.cache.match_prefix(MatchPrefixParams(key=key, **kwargs))

    @property
    def policy_in_force(self) -> EvictionPolicy | None:
        """``None`` for stock."""
        return self.cache.policy if isinstance(self.cache, MambaRadixCache) else None

    def use(self, node_id: int, req: Any = None) -> None:
        """A request is admitted that resumes there."""
        if isinstance(self.cache, MambaRadixCache):
            self.cache.use(node_id, req)

    def match(self, tokens: list[int], **kwargs: Any) -> Any:
        """As for a request that is admitted, and so uses what it found and misses what it lost."""
        req = kwargs.setdefault("req", SimpleNamespace(origin_input_ids=tokens, session=None))
        result = self.look(tokens, **kwargs)
        self.use(result.best_match_node, req)
        return result

    def hit(self, tokens: list[int]) -> int:
        """Tokens of ``tokens`` that a request would not have to prefill."""
        return int(self.match(tokens).device_prefix_len)

    def insert(self, tokens: list[int]) -> bool:
        """Cache ``tokens`` with a state at their end; ``False`` if memory could not be found.

        The matched prefix is locked meanwhile, as a running request's is.
        """
        result = self.match(tokens)
        matched = result.device_prefix_len
        lock = self.cache.lock(result.last_device_node)
        try:
            state = self.alloc_state()
            fresh = None if state is None else self.alloc_kv(len(tokens) - matched)
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


def radix_key(tokens: list[int]) -> RadixKey:
    return RadixKey(array("q", tokens))


def path_tokens(node: Any) -> tuple[int, ...]:
    """All tokens from the root to the end of a node of the Python tree core, or of a mirror."""
    parts: list[list[int]] = []
    while node.parent is not None:
        key = node.key
        parts.append(list(key.tokens if isinstance(key, Segment) else key.raw_token_ids()))
        node = node.parent
    return tuple(itertools.chain.from_iterable(reversed(parts)))
