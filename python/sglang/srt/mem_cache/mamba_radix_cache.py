"""MambaRadixCache: SGLang 0.5.23's radix cache of a hybrid model, with a policy's victims."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.base_prefix_cache import EvictParams, EvictResult
from sglang.srt.mem_cache.mamba_radix_lookups import MambaRadixLookups
from sglang.srt.mem_cache.mamba_radix_tree import (
    COMPONENTS,
    TREE_CORE_BACKEND,
    PolicyWalk,
    register_tree_core,
    session_test,
)
from sglang.srt.mem_cache.mamba_radix_view import MambaRadixView
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.policy import EvictionPolicy, create_policy, reweight
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.marconi.savings import CostModel, Savings
from sglang.srt.mem_cache.marconi.stats import MarconiStats, VictimKind
from sglang.srt.mem_cache.marconi.tuning.choices import Choice, untuned
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

if TYPE_CHECKING:
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.mamba_radix_tuning import MambaRadixTuning
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

logger = logging.getLogger(__name__)

Adopt = Callable[[Choice], None]
OnError = Callable[[str, Exception], None]


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
        make_tuning: makes the tuning of what the config leaves open, given what puts a choice in
            force and what is told of errors; ``None`` for none.
    """

    config: MarconiConfig
    cost: CostModel
    savings: Savings
    policy: EvictionPolicy | None = None
    description: str = ""
    on_request: Callable[[MarconiStats], None] | None = None
    make_tuning: Callable[[Adopt, OnError], MambaRadixTuning] | None = None


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
        self.tuning: MambaRadixTuning | None = None
        self.choice = untuned(setup.config, is_tuned=setup.make_tuning is not None)
        self.stats.eff_weight = self.choice.eff_weight
        self.policy = setup.policy or create_policy(self.choice.config, setup.savings)
        self.view = MambaRadixView(self.policy)
        self.view_is_sound = True
        self._short_of = "path_cap"
        self._was_short = False
        self._warned: set[str] = set()
        self._lookups = MambaRadixLookups(self.view)
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
        if setup.make_tuning is not None and not params.disable:
            self.tuning = setup.make_tuning(self.adopt, self._count_error)

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
            "policy": self.choice.config.policy_name,
            "tuning": None if self.tuning is None else self.tuning.controller.describe(),
            "cost_model": self.marconi.description,
            "tree_core": type(self.tree_core).__name__,
            "clock": self.view.now,
            "cached_prefixes": len(self.view),
            **self.stats.as_dict(),
        }

    def adopt(self, choice: Choice) -> None:
        """Put another policy or weight in force."""
        weight = choice.config.marconi_eff_weight
        if replace(self.choice.config, marconi_eff_weight=weight) == choice.config:
            reweight(self.policy, choice.config)
        else:
            self.policy = create_policy(choice.config, self.marconi.savings)
            self.report(self.view.replace_policy, self.policy)
        self.choice = choice
        self.stats.eff_weight = choice.eff_weight

    # -- what the tree reports

    def report(self, event: Callable[..., None], *args: Any) -> None:
        """Deliver an event of the tree; one that fails makes every decision LRU until a reset."""
        try:
            event(*args)
        except Exception as error:
            self.view_is_sound = False
            self._count_error("event", error)

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
        if self.tuning is not None:
            self.tuning.flushed()

    def state_created(self, node: UnifiedTreeNode) -> None:
        self._lookups.state_created(node)
        self.view.state_created(node)

    def state_leaves(self, node: UnifiedTreeNode) -> None:
        """The state of ``node`` is about to be evicted from the device, with or without its KV."""
        if node.component_data[ComponentType.MAMBA].value is None:
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

    # -- eviction walks

    def start_walk(self, pool: Pool, component: Any) -> PolicyWalk | None:
        """A walk over ``pool``; ``None`` where the policy leaves the order to SGLang."""
        self._short_of = pool.value
        self._was_short = True
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
                self._count_error("explaining a lookup", error)
        return result

    def checkpoint_into_tree(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        self.count_request(req)
        if self.tuning is not None:
            self.tuning.checkpointed(req, evicted=self._was_short)
            self.tuning.count_into(self.stats)
        super().checkpoint_into_tree(req, up_to=up_to, **kwargs)

    def on_release(self, req: Any, *, checkpointed: bool) -> None:
        super().on_release(req, checkpointed=checkpointed)
        if self.tuning is not None:
            self.tuning.released(req)

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
            self._count_error("counting a request", error)

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

    def _count_error(self, what: str, error: Exception) -> None:
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
