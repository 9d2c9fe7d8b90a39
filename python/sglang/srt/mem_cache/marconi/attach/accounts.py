"""What the cache of every base keeps beside the tree: policy, view, counters, caught errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sglang.srt.mem_cache.marconi.attach.setup import MarconiSetup
from sglang.srt.mem_cache.marconi.attach.view import TreeView
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.registry import create_policy, reweight
from sglang.srt.mem_cache.marconi.insight.lookups import Lookups
from sglang.srt.mem_cache.marconi.insight.stats import MarconiStats, VictimKind
from sglang.srt.mem_cache.marconi.prefix import HostPool, Pool
from sglang.srt.mem_cache.marconi.tree import TreeReader
from sglang.srt.mem_cache.marconi.tuning.weights import first_weight

logger = logging.getLogger(__name__)

#: Ticks between an event that was lost and the first attempt to learn the tree anew; an attempt
#: soon after another waits twice as long.
FIRST_RECOVERY, LONGEST_RECOVERY = 16, 1024

#: What happens where something failed, as the log says it.
UNSOUND = "SGLang's LRU decides until the tree is learnt anew"
UNCOUNTED = "the counters leave it out"

# Reading an Enum's value takes Python code of the enum module.
_NAMES = {pool: pool.value for pool in Pool}


class MarconiAccounts:
    """Mixed into a base's radix cache.

    An error in scoring, or in keeping the view of the tree, never reaches the scheduler: the
    decision falls back to LRU and is counted.
    """

    def open_accounts(
        self, setup: MarconiSetup, *, at_rest: str, may_order_host: bool = False
    ) -> None:
        """Must come before the base class makes its tree.

        Args:
            at_rest: which pool's shortage victims count under while no eviction is asked for.
            may_order_host: a policy that can is to order what lies on the host alone.
        """
        self.marconi = setup
        self._may_order_host = may_order_host
        self.stats = MarconiStats(setup.cost)
        is_tuned = setup.make_tuning is not None
        self.stats.eff_weight = first_weight(setup.config, is_tuned=is_tuned)
        self.policy = setup.policy or self._make_policy()
        self.view = TreeView(self.policy)
        self._at_rest = at_rest
        self._short_of = at_rest
        self._warned: set[str] = set()
        self._lost_at: int | None = None
        self._recovery_wait = FIRST_RECOVERY
        self._lookups = Lookups(self.view)

    def attach_tree(self, tree: TreeReader) -> None:
        self.tree = tree
        self.view.attach(tree)
        self._lookups.attach(tree)

    def describe_accounts(self, tree: str) -> dict[str, object]:
        """What is configured and what it did so far, as plain JSON types; ``tree`` is its name."""
        self.attempt(self.view.refresh)
        return {
            **self.marconi.config.as_dict(),
            "policy": self.marconi.config.policy_name,
            "cost_model": self.marconi.description,
            "tree_core": tree,
            "clock": self.view.now,
            "cached_prefixes": len(self.view),
            **self.stats.as_dict(),
        }

    def adopt(self, eff_weight: float) -> None:
        """Put another weight in force."""
        reweight(self.policy, eff_weight)
        self.stats.eff_weight = eff_weight

    def _make_policy(self) -> EvictionPolicy:
        """The configured policy with the weight in force; it knows nothing of the tree yet."""
        setup = self.marconi
        config = replace(setup.config, marconi_eff_weight=self.stats.eff_weight)
        return create_policy(
            config,
            setup.savings,
            shared_memory=setup.shared_memory,
            orders_host=self._may_order_host,
        )

    # -- what the tree reports

    def report(self, event: Callable[..., None], *args: Any) -> None:
        """Deliver an event of the tree; one that fails makes every decision LRU until a reset."""
        try:
            event(*args)
        except Exception as error:
            self.view.is_sound = False
            self.count_error("event", error, UNSOUND)

    def attempt(self, step: Callable[[], None]) -> None:
        """Let the view do now what a decision would do first.

        What stays to be done when it fails a decision meets again, falls back to LRU and counts.
        """
        try:
            step()
        except Exception as error:
            if not self.view.is_sound:
                self.count_error("event", error, UNSOUND)

    def forget_tree(self) -> None:
        """The tree was emptied."""
        if self.view.now:
            logger.info(
                "Marconi: cache flushed at tick %d after %d victims, digest %s",
                self.view.now,
                self.stats.victims.total(),
                self.stats.victim_digest.hex(),
            )
        self.report(self.view.clear)
        self._lost_at, self._recovery_wait = None, FIRST_RECOVERY
        if not self.view.is_sound:
            self.policy = self._make_policy()
            self.report(self.view.start_over, self.policy)
        self.report(self._lookups.clear)

    def state_created(self, node: Any) -> None:
        self._lookups.state_created(node)
        self.view.state_created(node)

    def prefix_deleted(self, node: Any) -> None:
        """``node`` is about to leave the tree."""
        self._lookups.prefix_deleted(node)

    def request_let_go(self) -> None:
        """Do what was put off, for the tree is whole and no memory is short."""
        if not self.view.is_sound:
            self._recover()
            return
        self.attempt(self.view.report_some)
        self.report(self._lookups.hash_deleted)

    def verify_tree(self) -> None:
        """Nothing where the tree itself is read; a base whose tree is mirrored compares the two.

        Raises:
            RuntimeError: what is read is not the tree.
        """

    def _recover(self) -> None:
        """Learn the tree anew some time after an event was lost: until then every victim is LRU's.

        It takes O(nodes) once, while no memory is short.
        """
        now = self.view.now
        if self._lost_at is None:
            self._lost_at = now
        if now - self._lost_at < self._recovery_wait:
            return
        self._lost_at = None
        self._recovery_wait = min(2 * self._recovery_wait, LONGEST_RECOVERY)
        try:
            self.verify_tree()
            self.policy = self._make_policy()
            self.view.rebuild(self.policy)
            self._lookups.clear()
        except Exception as error:
            self.view.is_sound = False
            self.count_error("learning the tree anew", error, f"{UNSOUND}, later")
            return
        self.stats.view_rebuilds += 1
        logger.warning(
            "Marconi: an event of the tree was lost; the tree was learnt anew at tick %d", now
        )

    def count_victim(self, node: Any, kind: VictimKind, *, kv_tokens: int) -> None:
        """``node`` is about to lose its state, its ``kv_tokens`` tokens of KV, or both."""
        resumed, depth = self.view.resumption(node)
        self.stats.count_victim(
            self._short_of,
            kind,
            node_id=node.id,
            resumed=resumed,
            depth=depth,
            kv_tokens=kv_tokens,
        )

    # -- which pool is short

    def start_shortage(self, pool: Pool) -> None:
        self._short_of = _NAMES[pool]

    def end_shortage(self) -> None:
        self._short_of = self._at_rest

    # -- lookups

    def note_lookup(self, req: Any, key: Any, *, hit: int, kv_alive: int, last: Any) -> None:
        """See :meth:`Lookups.note`."""
        self._lookups.note(req, key, hit=hit, kv_alive=kv_alive, last=last)

    def note_held(self, req: Any, tokens: int) -> None:
        """See :meth:`Lookups.note_held`."""
        try:
            self._lookups.note_held(req, tokens)
        except Exception as error:
            self.count_error("explaining a lookup", error, UNCOUNTED)

    def note_return(self, req: Any) -> None:
        """See :meth:`Lookups.returned`."""
        try:
            self._lookups.returned(req)
        except Exception as error:
            self.count_error("telling the policy of a return", error, "it learns nothing from it")

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
            self.count_error("counting a request", error, UNCOUNTED)

    # -- errors

    def count_fallback(self, pool: Pool | HostPool, error: Exception) -> None:
        """A decision in ``pool`` was left to LRU because of ``error``."""
        self.stats.fallbacks[pool.value] += 1
        what = f"choosing a victim in the {pool.value} pool"
        self._warn_once(what, error, "SGLang's LRU goes on in its place")

    def count_error(self, what: str, error: Exception, instead: str) -> None:
        """Count an error that ended nothing but ``what``.

        Args:
            instead: what happens now, for the log: a clause of its own.
        """
        self.stats.errors += 1
        self._warn_once(what, error, instead)

    def _warn_once(self, what: str, error: Exception, instead: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning(
                "Marconi: %s failed, %s; counted in /server_info, logged once: %r",
                what,
                instead,
                error,
            )
