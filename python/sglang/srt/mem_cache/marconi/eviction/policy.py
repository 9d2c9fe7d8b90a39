"""What an eviction policy is: events in, victims out, behind one small interface."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol, runtime_checkable

from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

#: Changed prefixes that an adapter reports when a request lets go of its path.
REPORTED_AT_ONCE = 8
#: Requests from the head of the queue that a policy is told of, as many as SGLang looks up.
MOST_WAITING = 128
#: Scheduling passes after which a waiting request is looked up again, as SGLang does it: others may
#: have cached more of its prompt.
REFRESH_PASSES = 32


class EvictionPolicy(Protocol):
    """Orders what is cached; a base adapter reports the tree's events and asks for victims.

    ``now`` is a logical tick, the same on every tensor-parallel rank. The adapter keeps one
    :class:`CachedPrefix` a node and changes it in place, so a policy must not read a prefix's
    fields between two events as if they were frozen. A pool that is not in ``pools`` is left to
    the tree's own LRU order.
    """

    pools: frozenset[Pool]

    def on_insert(self, prefix: CachedPrefix, now: int) -> None:
        """A prefix (state, KV or both) became cached."""

    def on_hit(self, prefix: CachedPrefix, now: int) -> None:
        """A request consumed its state; ``prefix.last_access`` is ``now``."""

    def on_change(self, prefix: CachedPrefix) -> None:
        """Its cost, bytes, children, locks or surviving ancestor changed."""

    def on_remove(self, prefix: CachedPrefix) -> None:
        """It is no longer cached."""

    def victim(self, pool: Pool, now: int, excluding: Container[int] = ()) -> CachedPrefix | None:
        """Whom to evict from ``pool``, or ``None`` when nothing evictable is left.

        Args:
            excluding: ids to be passed over; a policy asks only of those that it looks at.
        """


@runtime_checkable
class ReturnObserver(Protocol):
    """A policy that learns from requests that come back for what was evicted."""

    def on_return(self, id: int, now: int) -> None:
        """A request would have resumed at the evicted state of prefix ``id``, and none deeper."""

    def on_forgotten(self, id: int) -> None:
        """No more will be told of the evicted state of prefix ``id``."""


@runtime_checkable
class QueueObserver(Protocol):
    """A policy that keeps what requests wait for."""

    def on_queue(self, queue: Sequence[int | None], now: int) -> None:
        """Requests wait that would resume at these prefixes, the next to be served first.

        Args:
            queue: ids of prefixes; unknown ones and ``None`` stand for requests that would resume
                at no state. Whoever is not in it waits no longer.
        """


@runtime_checkable
class HintObserver(Protocol):
    """A policy that learns what it means when clients say what follows."""

    def on_hint(self, id: int, hint: Hint) -> None:
        """The request that left prefix ``id`` as its tail, and let go of it, said so.

        The prefix may have yet to be reported; unknown ids are ignored.
        """


@runtime_checkable
class HostOrderer(Protocol):
    """A policy that can order what lies on the host too."""

    orders_host: bool

    def order_host(self) -> None:
        """Do so, from the first event on: ``victim`` is asked about the host's pools then."""

    def is_worth_backup(self, prefix: CachedPrefix) -> bool:
        """Whether the host is to have a copy of a state that leaves the device without its KV."""


@runtime_checkable
class LookObserver(Protocol):
    """A policy of a shadow to which a look is what it is to SGLang's LRU: a touch."""

    def on_look(self, prefix: CachedPrefix, now: int) -> None:
        """A request that waits would resume at its state."""


def orders_host(policy: EvictionPolicy) -> bool:
    """Whether a policy is to order what lies on the host, too."""
    return bool(getattr(policy, "orders_host", False))


def orders_shared_memory(policy: EvictionPolicy) -> bool:
    """Whether a policy orders states and leaves of KV as one, whichever pool it is asked about."""
    return bool(getattr(policy, "shared", False))
