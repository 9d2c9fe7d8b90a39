"""What a tree core tells the cache and asks of it, so that no part has to know the cache's class.

A core reports every change of its tree, and asks for victims. The order of events about one node:
``state_created`` after the change, ``evicting_state``, ``evicting_kv`` and ``prefix_deleted``
before it, while the node still is what it was. A look is no event but for the split that it may
make: a request uses what it found when it is admitted, which no core hears of.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, Protocol

from sglang.srt.mem_cache.marconi.attach.view import TreeView
from sglang.srt.mem_cache.marconi.insight.stats import MarconiStats
from sglang.srt.mem_cache.marconi.prefix import HostPool, Pool
from sglang.srt.mem_cache.marconi.tree import TreeReader


class Walk(Protocol):
    """Offers one victim after another."""

    def next(self) -> Any | None:
        """A node of the tree, ``None`` at the end."""


class InsertObserver(Protocol):
    """Follows which states requests give to the tree."""

    def inserted(self, req: Any, insert_result: Any, insert_params: Any, *, finished: bool) -> None:
        """A request gave the tree a state."""


class TreeEvents(Protocol):
    """What a tree core needs of the cache.

    Nodes are the core's own; what can be asked of them is a :class:`TreeReader`.
    """

    view: TreeView

    @property
    def admission(self) -> InsertObserver | None:
        """``None``: every state that SGLang makes stays."""

    @property
    def serves_probe(self) -> bool:
        """A health check inserts now: it ticks no clock."""

    # -- how events are delivered

    def report(self, event: Callable[..., None], *args: Any) -> None:
        """Deliver an event; an error in it never reaches the scheduler."""

    def attempt(self, step: Callable[[], None]) -> None:
        """Let the view do now what a decision would do first; an error waits for that."""

    # -- events

    def attach_tree(self, tree: TreeReader) -> None:
        """``tree`` answers about the core's nodes from now on."""

    def forget_tree(self) -> None:
        """The tree was emptied."""

    def state_created(self, node: Any) -> None:
        """A state was put at the end of ``node``, or put there again."""

    def split(self, upper: Any, lower: Any) -> None:
        """``upper`` was put between ``lower`` and its parent."""

    def evicting_state(self, node: Any) -> None:
        """The state of ``node`` is about to be evicted from the device, with or without its KV."""

    def evicting_kv(self, node: Any) -> None:
        """The KV of ``node`` is about to be evicted from the device, and its state with it."""

    def leaving_device(self, node: Any) -> None:
        """The KV of ``node`` is about to leave the device, maybe with all that lies below it."""

    def prefix_deleted(self, node: Any) -> None:
        """``node`` is about to leave the tree."""

    # -- eviction

    def begin_walk(self, pool: Pool) -> bool:
        """``pool`` is short; whether the policy chooses the victims, and not SGLang."""

    def start_walk(self, pool: Pool, component: Any) -> Walk | None:
        """A walk over ``pool``; ``None`` where the policy leaves the order to SGLang."""

    def choose_victim(self, pool: Pool | HostPool | None, excluding: Container[int] = ()) -> Any:
        """The node that the policy would evict from ``pool``; ``None`` if it has none.

        Raises:
            Exception: scoring failed, or an event was lost; the caller falls back to LRU.
        """

    def is_worth_backup(self, node: Any) -> bool:
        """Whether the host gets a copy of the state of ``node`` before the device evicts it."""

    def end_walk(self) -> None:
        """No more victims are asked for."""

    def count_fallback(self, pool: Pool | HostPool, error: Exception) -> None:
        """A decision in ``pool`` was left to LRU because of ``error``."""


class HostCache(TreeEvents, Protocol):
    """The cache as its own parts see it: beside the events, what they use of SGLang's cache."""

    stats: MarconiStats
    tree_core: Any
    components: Any
    req_to_token_pool: Any
    token_to_kv_pool_allocator: Any
    enable_mamba_extra_buffer: bool
    cache_controller: Any
    ongoing_write_through: Any

    def count_error(self, what: str, error: Exception, instead: str) -> None:
        """Count an error that ended nothing but ``what``; ``instead`` is what happens now."""

    def start_shortage(self, pool: Pool) -> None:
        """Victims count under ``pool`` from now on."""

    def end_shortage(self) -> None:
        """No eviction is asked for any longer."""

    def state_taken_back(self, node: Any) -> None:
        """Admission gave up the state of ``node``."""

    def _evict(self, params: Any) -> Any:
        """SGLang's eviction."""

    def _component_available_size(self, component_type: Any) -> int:
        """Tokens or slots that can be allocated without an eviction."""

    def _apply_eviction_result(self, result: Any) -> None:
        """Free what an eviction took out of the tree."""

    def writing_check(self, write_back: bool = False, finish_count: int | None = None) -> None:
        """Unlock what was backed up to the host; ``write_back`` waits for all of it."""

    def update_eviction_metrics(self, num_evicted: int, start_time: float) -> None:
        """Tell SGLang's metrics of an eviction of so many tokens that began then, in seconds."""

    def loading_check(self, finish_count: int | None = None) -> None:
        """Wait for so many loads from the host, and unlock what they loaded."""
