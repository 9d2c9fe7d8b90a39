"""A host tier of numbered slots for a cache on CPU pools: SGLang's own bookkeeping, no copies."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer, PoolTransferResult
from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from sglang.srt.mem_cache.marconi.tuning.hosted_cache import WRITE_POLICIES
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components import CacheTransferPhase

from lab.cpu_cache import FULL, MAMBA, CpuCache


@dataclass
class Copied:
    """KV slots and states that were copied."""

    kv: int = 0
    states: int = 0

    def bytes(self, cost: CostModel) -> float:
        """What that is in bytes, of a model whose unit of length is a slot."""
        return self.kv * cost.kv_bytes_per_token + self.states * cost.state_bytes


class Slots:
    """Slots of one pool; those that were freed last are taken first."""

    shared_allocation_domain = None

    def __init__(self, count: int) -> None:
        self.count = count
        self.clear()

    def clear(self) -> None:
        self._free = list(range(self.count))
        self._used = bytearray(self.count)

    def available_size(self) -> int:
        return len(self._free)

    def alloc(self, count: int) -> torch.Tensor | None:
        """``None`` if there are not so many."""
        if count > len(self._free):
            return None
        rest = len(self._free) - count
        taken, self._free[rest:] = self._free[rest:], []
        for slot in taken:
            self._used[slot] = 1
        return torch.tensor(taken, dtype=torch.int64)

    def free(self, slots: torch.Tensor) -> None:
        freed = slots.tolist()
        assert all(self._used[slot] for slot in freed), "a host slot is freed twice"
        for slot in freed:
            self._used[slot] = 0
        self._free += freed


class Group:
    """Both host pools, as ``HostPoolGroup``."""

    def __init__(self, kv: Slots, states: Slots) -> None:
        self.pools = {PoolName.KV: kv, PoolName.MAMBA: states}
        self.anchor_entry = SimpleNamespace(host_pool=kv, host_evict_fn=None)

    def available_size(self) -> int:
        return self.pools[PoolName.KV].available_size()

    def get_pool(self, name: PoolName) -> Slots:
        return self.pools[name]

    def free(self, slots: torch.Tensor, pool: PoolName = PoolName.KV) -> None:
        self.pools[pool].free(slots)

    def clear(self) -> None:
        for pool in self.pools.values():
            pool.clear()


class HostTier:
    """Stands for ``HybridCacheController``; a transfer is under way until somebody completes it.

    Attributes:
        written, loaded: what was copied to the host, and back to the device.

    Args:
        write_policy: a key of :data:`WRITE_POLICIES`.
        load_back_threshold: slots of KV below which they are computed again, unless a state comes
            with them.
    """

    enable_storage = False

    def __init__(
        self,
        cpu: CpuCache,
        kv_slots: int,
        state_slots: int,
        write_policy: str,
        *,
        load_back_threshold: int = 1,
    ) -> None:
        self.cpu, self.write_policy = cpu, write_policy
        self.written, self.loaded = Copied(), Copied()
        self.mem_pool_host = Group(Slots(kv_slots), Slots(state_slots))
        self.ack_write_queue: list[Any] = []
        self.ack_load_queue: list[Any] = []
        cache = cpu.cache
        cache.cache_controller = self
        cache.host_pool_group = self.mem_pool_host
        for component, name in ((FULL, PoolName.KV), (MAMBA, PoolName.MAMBA)):
            host = self.mem_pool_host.get_pool(name)
            attribute = "_full_kv_pool_host" if component is FULL else "_mamba_pool_host"
            setattr(cache.components[component], attribute, host)
        cache.tree_core.set_hicache_enabled()
        cache.write_through_threshold = WRITE_POLICIES[write_policy]
        cache.is_write_back = write_policy == "write_back"
        cache.load_back_threshold = load_back_threshold

    def reset(self) -> None:
        self.ack_write_queue.clear()
        self.ack_load_queue.clear()

    def start_writing(self) -> None:
        pass

    def write(
        self, device: torch.Tensor, *, node_id: int, extra_pools: Any = None, flush: bool = True
    ) -> torch.Tensor | None:
        cache = self.cpu.cache
        kv = self.mem_pool_host.get_pool(PoolName.KV).alloc(len(device))
        if kv is None:
            return None
        for transfer in extra_pools or ():
            pool = self.mem_pool_host.get_pool(transfer.name)
            if pool.available_size() < 1:
                cache.evict_host(1, MAMBA)
            slot = pool.alloc(1)
            if slot is None:
                self.mem_pool_host.free(kv)
                return None
            transfer.host_indices = slot
            self.written.states += 1
        self.written.kv += len(device)
        self.ack_write_queue.append(_ack(node_id))
        return kv

    def load(
        self, host_indices: torch.Tensor, *, node_id: int, extra_pools: Any = None
    ) -> torch.Tensor | None:
        cpu = self.cpu
        kv = torch.empty(0, dtype=torch.int64)
        if len(host_indices):
            kv = cpu.allocator.alloc(len(host_indices))
        if kv is None:
            return None
        for transfer in extra_pools or ():
            if transfer.device_indices is None:
                slot = cpu.alloc_state()
                if slot is None:
                    if len(kv):
                        cpu.allocator.free(kv)
                    return None
                transfer.device_indices = slot
            self.loaded.states += 1
        self.loaded.kv += len(host_indices)
        self.ack_load_queue.append(_ack(node_id))
        return kv

    def prefetch(self, tokens: list[int]) -> None:
        """Storage gives the host what it does not hold of ``tokens``, and a state at their end."""
        cache, group = self.cpu.cache, self.mem_pool_host
        core, found = cache.tree_core, self.cpu.look(tokens)
        held = int(found.device_prefix_len + found.host_hit_length)
        missing = len(tokens) - held
        if not missing:
            return
        anchor = found.last_host_node
        lock = cache.inc_host_lock_ref(anchor).to_dec_params()
        cache.evict_host(max(0, missing - group.available_size()), FULL)
        states = group.get_pool(PoolName.MAMBA)
        cache.evict_host(max(0, 1 - states.available_size()), MAMBA)
        kv, state = group.get_pool(PoolName.KV).alloc(missing), states.alloc(1)
        if kv is not None and state is not None:
            key = RadixKey(array("q", tokens[held:]))
            result = core.insert_host(anchor, key, kv, ["hash"] * missing)
            cache._apply_cache_actions(result.cache_actions)
            if result.host_insert_dropped:
                group.free(kv)
                group.free(state, PoolName.MAMBA)
            else:
                actions: list[Any] = []
                transfer = PoolTransfer(name=PoolName.MAMBA, host_indices=state)
                core.commit_hicache_transfers(
                    anchor,
                    CacheTransferPhase.PREFETCH,
                    {MAMBA: [transfer]},
                    cache_actions=actions,
                    insert_result=result,
                    pool_storage_result=PoolTransferResult(
                        kv_hit_pages=missing, extra_pool_hit_pages={PoolName.MAMBA: 1}
                    ),
                )
                cache._apply_cache_actions(actions)
                group.free(kv[: result.prefix_len])
        else:
            for slots, pool in ((kv, PoolName.KV), (state, PoolName.MAMBA)):
                if slots is not None:
                    group.free(slots, pool)
        cache.dec_host_lock_ref(anchor, lock)

    def append_host_mem_release(self, host_indices: Any = None, extra_pools: Any = ()) -> None:
        if host_indices is not None:
            self.mem_pool_host.free(host_indices)
        for transfer in extra_pools:
            self.mem_pool_host.free(transfer.host_indices, transfer.name)

    def complete(self, writes: int = 1000, loads: int = 1000) -> None:
        """So many transfers of each kind are done, the oldest first."""
        cache = self.cpu.cache
        cache.writing_check(finish_count=min(writes, len(self.ack_write_queue)))
        cache.loading_check(finish_count=min(loads, len(self.ack_load_queue)))

    def used(self) -> tuple[int, int]:
        """Host slots of KV and of states in use."""
        kv, states = (self.mem_pool_host.get_pool(n) for n in (PoolName.KV, PoolName.MAMBA))
        return kv.count - kv.available_size(), states.count - states.available_size()


def _ack(node_id: int) -> Any:
    event = SimpleNamespace(query=lambda: True, synchronize=lambda: None)
    return SimpleNamespace(
        node_ids=[node_id], finish_event=event, num_tokens_by_pool=None, num_bytes=0
    )
