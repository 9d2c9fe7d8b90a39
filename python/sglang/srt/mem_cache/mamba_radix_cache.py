"""MambaRadixCache: SGLang 0.5.23's radix cache of a hybrid model, with a policy's victims."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from sglang.srt.mem_cache.base_prefix_cache import EvictParams, EvictResult
from sglang.srt.mem_cache.mamba_radix.admission import MambaRadixAdmission
from sglang.srt.mem_cache.mamba_radix.client_hints import ClientHints
from sglang.srt.mem_cache.mamba_radix.core import with_tree_core
from sglang.srt.mem_cache.mamba_radix.host_order import HOST_ORDERED, HostOrder
from sglang.srt.mem_cache.mamba_radix.probes import is_probe
from sglang.srt.mem_cache.mamba_radix.python_core.walk import PolicyWalk, session_test
from sglang.srt.mem_cache.mamba_radix.shared_memory import SharedMemory
from sglang.srt.mem_cache.mamba_radix.transfers import finish_transfers
from sglang.srt.mem_cache.mamba_radix.waiting import WaitingRequests
from sglang.srt.mem_cache.marconi.admission.rules import ADMISSIONS
from sglang.srt.mem_cache.marconi.attach.accounts import UNCOUNTED, MarconiAccounts
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier, MarconiSetup
from sglang.srt.mem_cache.marconi.eviction.policy import (
    HostOrderer,
    orders_host,
    orders_shared_memory,
)
from sglang.srt.mem_cache.marconi.insight.stats import VictimKind
from sglang.srt.mem_cache.marconi.prefix import HostPool, Pool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.session.streaming_session import is_virtual_node
from sglang.srt.utils.rank_consensus_checker import rank_consensus

if TYPE_CHECKING:
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.mamba_radix.tuning import MambaRadixTuning
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

__all__ = ["MambaRadixCache", "MarconiSetup"]


class MambaRadixCache(MarconiAccounts, UnifiedRadixCache):
    """The prefix cache of a hybrid model whose victims an eviction policy chooses.

    Everything but the choice of victims is SGLang's. Under policy 1 the choice is SGLang's too.

    Besides SGLang's interface it offers the one of the class of this name in PR #11214:
    ``evict(full_num_tokens)`` and ``evict_mamba(mamba_num)``.
    """

    def __init__(self, params: CacheInitParams, *, setup: MarconiSetup) -> None:
        self.tuning: MambaRadixTuning | None = None
        self.admission: MambaRadixAdmission | None = None
        self._shared = SharedMemory(self)
        self._waiting = WaitingRequests(self)
        self._client_hints = ClientHints(self)
        self._was_short = False
        self.serves_probe = False
        # What sessions hold on the host is left to the rules of SGLang's own order.
        may_order = setup.lower_tier is LowerTier.HOST and not params.enable_session_radix_cache
        self.open_accounts(setup, at_rest="path_cap", may_order_host=may_order)
        self._host_order = HostOrder(self) if orders_host(self.policy) else None
        if setup.config.marconi_admission != "sglang":
            self.admission = MambaRadixAdmission(
                self,
                ADMISSIONS[setup.config.marconi_admission](),
                setup.config.marconi_boundary_tokens,
            )
        super().__init__(with_tree_core(params, setup))
        if setup.make_tuning is not None and not params.disable:
            self.tuning = setup.make_tuning(self.adopt, self.count_error)

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

    def evict_for_alloc(
        self,
        params: EvictParams,
        *,
        allocation_reclaim_satisfied: Callable[[], bool] | None = None,
    ) -> EvictResult:
        """Evict until an allocation that fell short by ``params`` can be served.

        Where states and KV share their memory and the policy orders both, either may go. Where
        transfers of the host tier hold the states that could go, they are waited for.
        """
        if self.disable or allocation_reclaim_satisfied is not None:
            return super().evict_for_alloc(
                params, allocation_reclaim_satisfied=allocation_reclaim_satisfied
            )
        if self.marconi.shared_memory and orders_shared_memory(self.policy):
            return self._evict_across(params)
        slots = self._component_available_size(ComponentType.MAMBA) + params.mamba_num
        result = super().evict_for_alloc(params)
        missing = slots - self._component_available_size(ComponentType.MAMBA)
        if params.mamba_num and missing > 0 and finish_transfers(self):
            more = super().evict_for_alloc(EvictParams(num_tokens=0, mamba_num=missing))
            result.num_tokens_evicted += more.num_tokens_evicted
            result.mamba_num_evicted += more.mamba_num_evicted
        return result

    def evict_host(
        self, num_tokens: int, component_type: ComponentType = ComponentType.FULL
    ) -> int:
        """Make room on the host, in the policy's order where it orders that memory too.

        Returns:
            Tokens of KV, or states, that went.
        """
        order = self._host_order
        if order is None or component_type not in HOST_ORDERED:
            return self.evict_from_host(num_tokens, component_type)
        return order.evict(num_tokens, component_type)

    def evict_from_host(self, count: int, component_type: ComponentType) -> int:
        """SGLang's own eviction of what is not locked on the host."""
        evicted: int = super().evict_host(count, component_type)
        return evicted

    def is_worth_backup(self, node: UnifiedTreeNode) -> bool:
        """Whether the host gets a copy, under ``write_back``, of a state that the device evicts.

        SGLang copies every one, and waits for it. What it would put into storage, too, may be
        another server's prefix.
        """
        policy, view = self.policy, self.view
        if self._host_order is None or self.enable_storage or not view.is_sound:
            return True
        try:
            view.refresh()
            worth = cast(HostOrderer, policy).is_worth_backup(view.prefix(node))
        except Exception as error:
            self.count_error("weighing a backup", error, "the copy is made, as SGLang would")
            return True
        self.stats.backups_skipped += not worth
        return worth

    @rank_consensus(same_params=True, same_results=True)  # type: ignore[untyped-decorator]
    def _evict_across(self, params: EvictParams) -> EvictResult:
        self._was_short = True
        try:
            return self._shared.make_room(params)
        except Exception as error:
            self.count_fallback(Pool.STATE if params.mamba_num else Pool.KV, error)
            return super().evict_for_alloc(params)

    def marconi_state(self) -> dict[str, object]:
        """What is configured and what it did so far, as plain JSON types."""
        return {
            **self.describe_accounts(type(self.tree_core).__name__),
            "tuning": None if self.tuning is None else self.tuning.controller.describe(),
        }

    # -- what the tree reports

    def forget_tree(self) -> None:
        super().forget_tree()
        self._client_hints.clear()
        # The first tree is made before what orders the host is.
        if self._host_order is not None:
            self._host_order.clear()
        if self.admission is not None:
            self.report(self.admission.given.clear)
        if self.tuning is not None:
            self.tuning.flushed()

    def verify_tree(self) -> None:
        verify = getattr(self.tree_core, "verify_mirror", None)
        if verify is not None:
            verify()

    def state_created(self, node: UnifiedTreeNode) -> None:
        super().state_created(node)
        if self.admission is not None:
            self.admission.given.created(node.id)

    def split(self, upper: UnifiedTreeNode, lower: UnifiedTreeNode) -> None:
        """``upper`` was put between ``lower`` and its parent."""
        self.view.split(upper, lower)
        if self.admission is not None:
            self.admission.given.parted(lower.id)

    def state_taken_back(self, node: UnifiedTreeNode) -> None:
        """Admission gave up the state of ``node``: it counts as never admitted, not as evicted."""
        self.stats.states_taken_back += 1
        self._lookups.state_taken_back(node)

    def evicting_state(self, node: UnifiedTreeNode) -> None:
        """The state of ``node`` is about to be evicted from the device, with or without its KV."""
        if not self.tree.holds_state(node):
            return
        if self.admission is not None:
            self.admission.given.left(node.id)
            if self.admission.taking_back:
                return
        if not self.tree.is_evictable_leaf(node):
            self.count_victim(node, VictimKind.STATE_ONLY, kv_tokens=0)

    def evicting_kv(self, node: UnifiedTreeNode) -> None:
        """The KV of ``node`` is about to be evicted from the device, and its state with it."""
        has_state = self.tree.holds_state(node)
        kind = VictimKind.LEAF_WITH_STATE if has_state else VictimKind.LEAF_KV_ONLY
        self.count_victim(node, kind, kv_tokens=len(node.key))

    def prefix_deleted(self, node: UnifiedTreeNode) -> None:
        super().prefix_deleted(node)
        if self._host_order is not None:
            self._host_order.deleted(node.id)
        if self.admission is not None:
            self.admission.given.deleted(node.id)

    def leaving_device(self, node: UnifiedTreeNode) -> None:
        """The KV of ``node`` is about to leave the device, maybe with all that lies below it."""
        if self._host_order is not None:
            self._host_order.let_go(node)

    # -- eviction walks

    def begin_walk(self, pool: Pool) -> bool:
        """``pool`` is short; whether the policy chooses the victims, and not SGLang."""
        self.view.tick()
        self.start_shortage(pool)
        self._was_short = True
        return pool in self.policy.pools

    def start_walk(self, pool: Pool, component: Any) -> PolicyWalk | None:
        """A walk over ``pool``; ``None`` where the policy leaves the order to SGLang."""
        return PolicyWalk(self, pool, session_test(component)) if self.begin_walk(pool) else None

    def choose_victim(self, pool: Pool | HostPool | None, excluding: Container[int] = ()) -> Any:
        """See :meth:`TreeView.victim`.

        Raises:
            RuntimeError: an event of the tree was lost.
        """
        self.view.require_sound()
        return self.view.victim(pool, excluding=excluding)

    def end_walk(self) -> None:
        self.end_shortage()

    def dec_lock_ref(self, node_id: int, params: Any, skip_swa: bool = False) -> Any:
        result = super().dec_lock_ref(node_id, params, skip_swa)
        self.request_let_go()
        if self._host_order is not None and self.view.is_sound:
            self.attempt(self._host_order.keep_up)
        return result

    # -- lookups, which are no uses, and uses

    def maybe_hand_to_session(self, req: Any) -> None:
        # SGLang calls it for every prefill that it has found memory for, chunk by chunk.
        lock = req.lock
        super().maybe_hand_to_session(req)
        if lock is None or getattr(req, "marconi_used", False) or is_probe(req):
            return
        req.marconi_used = True
        self.use(lock.node, req)

    def use(self, node_id: int, req: Any = None) -> None:
        """A request resumes at a node that it holds locked, or at the root: once a request.

        Args:
            req: who is told of what was lost, if it was looked up.
        """
        self.view.tick()
        self.report(self._used, node_id)
        self.note_return(req)

    def _used(self, node_id: int) -> None:
        node = self.tree.node_by_id(node_id)
        if node.parent is None or not self.tree.holds_state(node):
            return
        self.view.state_consumed(node)
        if self.admission is not None:
            self.admission.given.looked_up(node.id)

    @contextmanager
    def _probing(self) -> Iterator[None]:
        self.serves_probe = True
        try:
            yield
        finally:
            self.serves_probe = False

    def match_prefix(self, params: Any) -> Any:
        result = super().match_prefix(params)
        if is_virtual_node(result.best_match_node):
            # A later turn of a streaming session, which holds its KV and state outside the tree.
            self.note_held(params.req, result.device_prefix_len)
        return result

    def _match_tree(self, params: Any) -> Any:
        if is_probe(params.req):
            with self._probing():
                return super()._match_tree(params)
        result = super()._match_tree(params)
        if params.req is not None and not self.disable:
            try:
                self._note_match(params, result)
            except Exception as error:
                self.count_error("explaining a lookup", error, UNCOUNTED)
        return result

    def _note_match(self, params: Any, result: Any) -> None:
        # With a host tier, KV between the last state on the device and the state that is loaded
        # back can lie on either side: only the node says how deep the request resumes.
        hit = self.view.depth(self.tree.node_by_id(result.best_match_node))
        last = self.tree.root_node
        if result.last_visited_node_id is not None:
            last = self.tree.node_by_id(result.last_visited_node_id)
        kv_alive = max(result.full_kv_hit_length, hit)
        self.note_lookup(params.req, params.key, hit=hit, kv_alive=kv_alive, last=last)

    def note_queue(self, queue: Sequence[Any], *, matched: bool) -> None:
        """See :meth:`WaitingRequests.note`."""
        try:
            self._waiting.note(queue, matched=matched)
        except Exception as error:
            self.count_error("noting who waits", error, "the policy goes by who waited before")

    def checkpoint(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        if is_probe(req):
            with self._probing():
                super().checkpoint(req, up_to=up_to, **kwargs)
            return
        self.count_request(req)
        if self.tuning is not None:
            slot = self.session.borrowed_slot(req)
            if slot is None or slot.publishes_prompt:
                self.tuning.checkpointed(req, evicted=self._was_short)
            self.tuning.count_into(self.stats)
        super().checkpoint(req, up_to=up_to, **kwargs)

    def release_session(self, session_id: str) -> None:
        super().release_session(session_id)
        try:
            self._client_hints.closed(session_id)
        except Exception as error:
            self.count_error("taking a hint", error, "the hint is ignored")
        if self.tuning is not None:
            self.tuning.session_closed(session_id)

    def on_release(self, req: Any, *, checkpointed: bool) -> None:
        super().on_release(req, checkpointed=checkpointed)
        hint = None
        try:
            hint = self._client_hints.ended(req)
        except Exception as error:
            self.count_error("taking a hint", error, "the hint is ignored")
        if self.tuning is not None:
            self.tuning.released(req, hint)
