"""What the shared modules read off a base's radix tree, whose nodes they never look into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

#: What keeps equal tokens apart: the ``extra_key`` (a LoRA adapter, say) and the ``cache_salt`` of
#: a request. ``None`` and the empty string differ in the first, as in SGLang's keys.
Namespace = tuple[str | None, str | None]
NO_NAMESPACE: Namespace = (None, None)


def namespace_of(owner: Any) -> Namespace:
    """The namespace of a request of SGLang, or of one of its radix keys."""
    return owner.extra_key, owner.cache_salt or None


class TreeReader(Protocol):
    """Answers about one base's tree; every base adapter implements it.

    A node has ``id``, ``parent`` (``None`` at the root), ``children`` by key, and ``key``, the
    tokens between its parent's end and its own.
    """

    root_node: Any

    def node_by_id(self, node_id: int) -> Any:
        """The node of this id, which is in the tree."""
        ...

    def holds_state(self, node: Any) -> bool:
        """A state lies at the node's end, on the device."""
        ...

    def state_survives(self, node: Any) -> bool:
        """A request can resume at the node's end, from wherever its state lies."""
        ...

    def state_is_locked(self, node: Any) -> bool:
        """A request holds the node's state."""
        ...

    def is_evictable_leaf(self, node: Any) -> bool:
        """The KV pool may evict the node now."""
        ...

    def tokens_of(self, key: Any) -> Sequence[int]:
        """Token ids of a node's or a lookup's key, or of a slice of one."""
        ...

    def namespace_of(self, key: Any) -> Namespace:
        """What keeps equal tokens apart."""
        ...


class HostedTreeReader(TreeReader, Protocol):
    """What can be asked besides where the host's memory lies below the device's."""

    def state_on_host_alone(self, node: Any) -> bool:
        """A state lies at the node's end, on the host and not on the device."""
        ...

    def kv_on_host_alone(self, node: Any) -> bool:
        """The node's KV lies on the host and not on the device."""
        ...
