"""MambaRadixCache: SGLang 0.5.23's radix cache of a hybrid model, with a policy's victims."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.base_prefix_cache import EvictParams, EvictResult
from sglang.srt.mem_cache.mamba_radix_admission import MambaRadixAdmission
from sglang.srt.mem_cache.mamba_radix_lookups import MambaRadixLookups
from sglang.srt.mem_cache.mamba_radix_tree import (
    COMPONENTS,
    TREE_CORE_BACKEND,
    PolicyWalk,
    register_tree_core,
    session_test,
)
from sglang.srt.mem_cache.mamba_radix_view import MambaRadixView
from sglang.srt.mem_cache.marconi.admission import ADMISSIONS
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.policy import EvictionPolicy, create_policy
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.marconi.savings import CostModel, Savings
from sglang.srt.mem_cache.marconi.stats import MarconiStats, VictimKind
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

if TYPE_CHECKING:
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MarconiSetup:
    """What a cache needs beside SGLang's own parameters.

    Attributes:
        config: the operator's choices.
        cost: FLOPs and bytes of the model's prefixes, with the bytes of this rank's pools.
        savings: how the policy prices a prefix.
        policy: who chooses the victims; ``None`` for the one that the config names.
        description: the cost model in a few words, for the log.
        on_request: called with the counters after each counted request, for exporters.
    """

    config: MarconiConfig
    cost: CostModel
    savings: Savings
    policy: EvictionPolicy | None = None
    description: str = ""
    on_request: Callable[[MarconiStats], None] | None = None


class MambaRadixCache(UnifiedRadixCache):
    """The prefix cache of a hybrid model whose victims an eviction policy chooses.

    Everything but the choice of victims is SGLang's. Under policy 1 the choice is SGLang's too.
    An error in scoring, or in keeping the policy's view of the tree, never reaches the scheduler:
    the decision falls back to LRU and is counted.

    Besides SGLang's interface it offers the one of the class of this name in PR #11214:
    ``evict(full_num_tokens)`` and ``evict_mamba(mamba_num)``.
    """

    def __init__(self, params: CacheInitParams, *, setup: MarconiSetup) -> None:
        self.marconi = setup
        self.stats = MarconiStats()
        self.policy = setup.policy or create_policy(setup.config, setup.savings)
        self.view = MambaRadixView(self.policy)
        self.view_is_sound = True
        self._short_of = "path_cap"
        self._warned: set[str] = set()
        self._lookups = MambaRadixLookups(self.view)
        self.admission: MambaRadixAdmission | None = None
        if setup.config.marconi_admission != "sglang":
            self.admission = MambaRadixAdmission(
                self,
                ADMISSIONS[setup.config.marconi_admission](),
                setup.config.marconi_boundary_tokens,
            )
        register_tree_core()
        super().__init__(
            replace(
                params,
                tree_core_backend=TREE_CORE_BACKEND,
                component_registry_override={
                    **(params.component_registry_override or {}),
                    **COMPONENTS,
                },
            )
        )

    # -- eviction, as PR #11214 names it

    def evict(self, params: EvictParams | int) -> EvictResult:
        """Evict KV and states.

        Args:
            params: SGLang's request, or a number of KV tokens to free.
        """
        if not isinstance(params, EvictParams):
            params = EvictParams(num_tokens=params)
        return super().evict(params)

    def evict_mamba(self, mamba_num: int) -> EvictResult:
        """Free ``mamba_num`` state slots."""
        return self.evict(EvictParams(num_tokens=0, mamba_num=mamba_num))

    def marconi_state(self) -> dict[str, object]:
        """What is configured and what it did so far, as plain JSON types."""
        self.report(self.view.refresh)
        return {
            **self.marconi.config.as_dict(),
            "policy": self.marconi.config.policy_name,
            "cost_model": self.marconi.description,
            "tree_core": type(self.tree_core).__name__,
            "clock": self.view.now,
            "cached_prefixes": len(self.view),
            **self.stats.as_dict(),
        }

    # -- what the tree reports

    def report(self, event: Callable[..., None], *args: Any) -> None:
        """Deliver an event of the tree; one that fails makes every decision LRU until a reset."""
        try:
            event(*args)
        except Exception as error:
            self.view_is_sound = False
            self.count_error("event", error)

    def forget_tree(self) -> None:
        """The tree was emptied."""
        if self.view.now:
            logger.info(
                "Marconi: cache flushed at tick %d after %d victims, digest %s",
                self.view.now,
                self.stats.victims.total(),
                self.stats.victim_digest.hex(),
            )
        self.view_is_sound = True
        self.report(self.view.clear)
        self.report(self._lookups.clear)
        if self.admission is not None:
            self.report(self.admission.clear)

    def state_created(self, node: UnifiedTreeNode) -> None:
        self._lookups.state_created(node)
        self.view.state_created(node)
        if self.admission is not None:
            self.admission.state_created(node)

    def state_consumed(self, node: UnifiedTreeNode) -> None:
        """A request found the state of ``node``."""
        self.view.state_consumed(node)
        if self.admission is not None:
            self.admission.state_looked_up(node)

    def split(self, upper: UnifiedTreeNode, lower: UnifiedTreeNode) -> None:
        """``upper`` was put between ``lower`` and its parent."""
        self.view.split(upper, lower)
        if self.admission is not None:
            self.admission.split(lower)

    def state_taken_back(self, node: UnifiedTreeNode) -> None:
        """Admission gave up the state of ``node``: it counts as never admitted, not as evicted."""
        self.stats.states_taken_back += 1
        self._lookups.state_taken_back(node)

    def state_leaves(self, node: UnifiedTreeNode) -> None:
        """The state of ``node`` is about to be evicted from the device, with or without its KV."""
        if node.component_data[ComponentType.MAMBA].value is None:
            return
        if self.admission is not None:
            self.admission.state_left(node)
            if self.admission.taking_back:
                return
        if node not in self.tree_core.evictable_device_leaves:
            self._count_victim(node, VictimKind.STATE_ONLY, kv_tokens=0)

    def kv_leaves(self, node: UnifiedTreeNode) -> None:
        """The KV of ``node`` is about to be evicted from the device, and its state with it."""
        if node.component_data[ComponentType.FULL].value is None:
            return
        has_state = node.component_data[ComponentType.MAMBA].value is not None
        kind = VictimKind.LEAF_WITH_STATE if has_state else VictimKind.LEAF_KV_ONLY
        self._count_victim(node, kind, kv_tokens=len(node.key))

    def prefix_deleted(self, node: UnifiedTreeNode) -> None:
        """``node`` is about to leave the tree."""
        self._lookups.prefix_deleted(node)
        if self.admission is not None:
            self.admission.deleted(node)

    # -- eviction walks

    def start_walk(self, pool: Pool, component: Any) -> PolicyWalk | None:
        """A walk over ``pool``; ``None`` where the policy leaves the order to SGLang."""
        self._short_of = pool.value
        if pool not in self.policy.pools:
            return None
        return PolicyWalk(self, pool, session_test(component))

    def end_walk(self) -> None:
        self._short_of = "path_cap"

    def count_fallback(self, pool: Pool, error: Exception) -> None:
        """A decision in ``pool`` was left to LRU because of ``error``."""
        self.stats.fallbacks[pool.value] += 1
        self._warn_once(f"choosing a victim in the {pool.value} pool", error)

    # -- lookups

    def _match_tree(self, params: Any) -> Any:
        result = super()._match_tree(params)
        if params.req is not None and not self.disable:
            try:
                self._lookups.note(self.tree_core, params, result)
            except Exception as error:
                self.count_error("explaining a lookup", error)
        return result

    def checkpoint_into_tree(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        self.count_request(req)
        super().checkpoint_into_tree(req, up_to=up_to, **kwargs)

    def count_request(self, req: Any) -> None:
        """Count a request that is being prefilled; from the second call on it does nothing."""
        try:
            lookup = self._lookups.take(req)
            if lookup is None:
                return
            flops = self.marconi.cost.flops
            self.stats.count_lookup(
                lookup, float(flops(0, lookup.hit)), float(flops(0, lookup.input_tokens))
            )
            if self.marconi.on_request is not None:
                self.marconi.on_request(self.stats)
        except Exception as error:
            self.count_error("counting a request", error)

    # -- internals

    def _count_victim(self, node: UnifiedTreeNode, kind: VictimKind, *, kv_tokens: int) -> None:
        cost = self.marconi.cost
        prefix = self.view.prefix(node)
        freed = cost.kv_bytes_per_token * kv_tokens
        if kind is not VictimKind.LEAF_KV_ONLY:
            freed += cost.state_bytes
        flops = cost.flops(prefix.reuse_from, prefix.depth) if prefix.has_state else 0.0
        self.stats.count_victim(
            self._short_of,
            kind,
            node_id=node.id,
            depth=prefix.depth,
            kv_tokens=kv_tokens,
            freed_bytes=freed,
            flops=float(flops),
        )

    def count_error(self, what: str, error: Exception) -> None:
        """Count an error that was kept from the scheduler, and log its kind once."""
        self.stats.errors += 1
        self._warn_once(what, error)

    def _warn_once(self, what: str, error: Exception) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning(
                "Marconi: %s failed, SGLang's LRU goes on in its place; counted in "
                "/server_info, logged once: %r",
                what,
                error,
            )
