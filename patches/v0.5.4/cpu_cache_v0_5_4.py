"""A prefix cache of the patched SGLang 0.5.4 over real CPU pools, driven as a scheduler would."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from sglang.srt import marconi_wiring
from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateShape
from sglang.srt.marconi_utils import ModelCost
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache
from sglang.srt.mem_cache.marconi.attach.setup import MarconiSetup
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.savings import SAVINGS, CostModel
from sglang.srt.mem_cache.marconi_radix_cache import MarconiRadixCache
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, HybridReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey

#: A made-up model whose state weighs as much as 100 tokens of KV.
EXAMPLE_COST = ModelCost(a=10**6, b=100, kv_bytes_per_token=16, state_bytes=1600)


def make_pools(
    kv_tokens: int, state_slots: int
) -> tuple[HybridReqToTokenPool, TokenToKVPoolAllocator]:
    """Tiny but real pools: one recurrent layer, one attention layer of one head and one channel."""
    # SGLang's server sets it from --mamba-ssm-dtype.
    os.environ.setdefault("SGLANG_MAMBA_SSM_DTYPE", "float32")
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
        max_context_len=256,
        device="cpu",
        enable_memory_saver=False,
        cache_params=Mamba2CacheParams(shape=shape, layers=[0]),
    )
    kv = HybridLinearKVPool(
        size=kv_tokens,
        dtype=torch.float32,
        page_size=1,
        head_num=1,
        head_dim=1,
        full_attention_layer_ids=[1],
        enable_kvcache_transpose=False,
        device="cpu",
        mamba_pool=requests.mamba_pool,
    )
    allocator = TokenToKVPoolAllocator(
        kv_tokens, dtype=torch.float32, device="cpu", kvcache=kv, need_sort=False
    )
    return requests, allocator


def read_options(policy: int, options: Mapping[str, Any]) -> MarconiConfig:
    """What this release's server makes of a policy number and further options, by field name.

    Raises:
        MarconiConfigError: a value is not allowed.
    """
    config = marconi_wiring.read_options({"marconi_evict_policy": policy, **options})
    assert config is not None
    return config


@dataclass(frozen=True)
class Match:
    """What a lookup found.

    Attributes:
        device_prefix_len: tokens that need no prefill.
        last_device_node: the node whose state they end with; the root where there is none.
        device_indices: KV slots of those tokens.
        mamba_branching_seqlen: always ``None``: this release makes no state at a branch point.
    """

    device_prefix_len: int
    last_device_node: Any
    device_indices: torch.Tensor
    mamba_branching_seqlen: int | None = None


@dataclass
class CpuCache:
    """A cache and its pools, one request at a time.

    Attributes:
        policy: Marconi policy number, or a policy of one's own; ``None`` for stock. One that has
            a method ``attach`` is given the tree that it serves.
        options: further Marconi options, by field name.
    """

    policy: int | EvictionPolicy | None = None
    kv_tokens: int = 512
    state_slots: int = 16
    cost: CostModel = EXAMPLE_COST
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.requests, self.allocator = make_pools(self.kv_tokens, self.state_slots)
        if self.policy is None:
            self.cache = MambaRadixCache(self.requests, self.allocator, page_size=1)
            return
        own = None if isinstance(self.policy, int) else self.policy
        number = self.policy if isinstance(self.policy, int) else 2
        config = read_options(number, self.options)
        savings = SAVINGS[config.marconi_savings](self.cost)
        setup = MarconiSetup(config, self.cost, savings, policy=own)
        self.cache = MarconiRadixCache(self.requests, self.allocator, 1, setup=setup)
        attach = getattr(own, "attach", None)
        if attach is not None:
            attach(self.cache)

    @staticmethod
    def key(tokens: list[int]) -> RadixKey:
        return RadixKey(list(tokens))

    def alloc_kv(self, tokens: int) -> torch.Tensor | None:
        """``tokens`` KV slots, evicting as a scheduler does; ``None`` if that was not enough."""
        if self.allocator.available_size() < tokens:
            # This release asks for all of the tokens, not for those that are missing.
            self.cache.evict(tokens)
        slots: torch.Tensor | None = self.allocator.alloc(tokens)
        return slots

    def alloc_state(self) -> torch.Tensor | None:
        """One state slot, evicting as a scheduler does; ``None`` if that was not enough."""
        slot: torch.Tensor | None = self.requests.mamba_pool.alloc(1)
        if slot is None:
            self.cache.evict_mamba(1)
            slot = self.requests.mamba_pool.alloc(1)
        # A view of the pool's list of free slots would keep all of that list.
        return None if slot is None else slot.clone()

    def free_state(self, state: torch.Tensor) -> None:
        self.requests.mamba_pool.free(state)

    def match(self, tokens: list[int], **kwargs: Any) -> Match:
        """Look up; keywords ``req`` and ``cow_mamba`` as SGLang's scheduler gives them."""
        found = self.cache.match_prefix(self.key(tokens), **kwargs)
        return Match(len(found.device_indices), found.last_device_node, found.device_indices)

    def hit(self, tokens: list[int]) -> int:
        """Tokens of ``tokens`` that a request would not have to prefill."""
        return self.match(tokens).device_prefix_len

    def kv_alive(self, tokens: list[int]) -> int:
        """Leading tokens whose KV is cached, right after they were looked up."""
        rest, node = self.key(tokens), self.cache.root_node
        while len(rest):
            # The lookup split the tree where it ended: what it shared is whole nodes.
            node = node.children.get(self.cache.get_child_key_fn(rest))
            if node is None:
                break
            rest = rest[len(node.key) :]
        return len(tokens) - len(rest)

    def lock(self, node: Any) -> Any:
        """Keep ``node``'s path and state; returns what :meth:`unlock` takes."""
        self.cache.inc_lock_ref(node)
        return node

    def unlock(self, lock: Any) -> None:
        self.cache.dec_lock_ref(lock)

    def commit(
        self, tokens: list[int], held: torch.Tensor, fresh: torch.Tensor, state: torch.Tensor
    ) -> None:
        """Give ``tokens`` to the tree with a state at their end.

        Args:
            held: KV slots of the leading tokens, which the tree owns and a lock keeps.
            fresh: KV slots of all other tokens; those that the tree has already are freed.
            state: freed if there is one already.
        """
        known, exists = self.cache.insert(self.key(tokens), torch.cat([held, fresh]), state)
        self.allocator.free(fresh[: max(known - len(held), 0)])
        if exists:
            self.free_state(state)

    def insert(self, tokens: list[int]) -> bool:
        """Cache ``tokens`` with a state at their end; ``False`` if memory could not be found.

        The matched prefix is locked meanwhile, as a running request's is.
        """
        found = self.match(tokens)
        lock = self.lock(found.last_device_node)
        try:
            state = self.alloc_state()
            missing = len(tokens) - found.device_prefix_len
            fresh = None if state is None else self.alloc_kv(missing)
            if state is None or fresh is None:
                if state is not None:
                    self.free_state(state)
                return False
            self.commit(tokens, found.device_indices, fresh, state)
            return True
        finally:
            self.unlock(lock)


def path_tokens(node: Any) -> tuple[int, ...]:
    """All tokens from the root to the end of a node."""
    parts: list[list[int]] = []
    while node.parent is not None:
        parts.append(list(node.key.token_ids))
        node = node.parent
    return tuple(itertools.chain.from_iterable(reversed(parts)))
