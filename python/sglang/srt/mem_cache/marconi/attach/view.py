"""Keeps what a policy knows of the tree in step with the radix tree of a base."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import attrgetter, eq
from typing import Any, cast

from sglang.srt.mem_cache.marconi.eviction.policy import (
    REPORTED_AT_ONCE,
    EvictionPolicy,
    orders_host,
    orders_shared_memory,
)
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, HostPool, Pool
from sglang.srt.mem_cache.marconi.tree import HostedTreeReader, TreeReader

#: Marked nodes that are left for a decision to find.
MOST_MARKED = 64

_ORDER = attrgetter("order")


@dataclass(slots=True, eq=False)
class _Notes:
    """All that is kept of one node, in one record: each look-up of a cold node costs a cache miss.

    Attributes:
        depth: tokens from the root to its end; 0 until somebody asks.
        last_access: tick at which its state was created or last consumed; ``None`` if unknown.
        children: how many it had when the core last looked whether it is a leaf.
        prefix: what the policy knows of it; ``None`` while it is no candidate.
    """

    depth: int = 0
    last_access: int | None = None
    children: int = 0
    prefix: CachedPrefix | None = None


class PassedOver:
    """Ids to pass over: those among some, and those of which a test says so once it is asked."""

    __slots__ = ("_some", "_test")

    def __init__(self, some: Container[int], test: Callable[[int], bool]) -> None:
        self._some = some
        self._test = test

    def __contains__(self, id: object) -> bool:
        assert isinstance(id, int)
        return id in self._some or self._test(id)


class TreeView:
    """One :class:`CachedPrefix` for every tree node that holds a state or is an evictable leaf.

    Under a policy that orders the host's memory too that means on the device or on the host.

    Tree events only mark nodes. The marked ones are brought up to date, and the policy is told,
    when a request lets go of its path (:meth:`report_some`), and what is left before a decision
    (:meth:`refresh`). An event costs O(1), except that a state that comes or goes, and a fork that
    opens or closes, mark the nodes below it down to the next states: their surviving ancestor
    changed. A policy that orders no pool is told nothing.

    The clock counts uses, inserts and eviction walks, and is the same on every
    tensor-parallel rank, because all ranks perform the same operations in the same order.

    A change that the policy fails to take in stays marked. ``is_sound`` tells whether the policy
    knows of all that left, without which it could offer what is gone.

    Attributes:
        moved: ids of nodes that the host may forget in the policy's order now and could not before,
            or the other way round, since somebody took note; empty unless a policy orders it.
    """

    def __init__(self, policy: EvictionPolicy) -> None:
        self._obey(policy)
        self.is_sound = True
        self.now = 0
        self._tree: TreeReader | None = None
        self._notes: dict[int, _Notes] = {}
        self._known = 0
        self._marked: dict[int, Any] = {}
        self.moved: dict[int, None] = {}
        self._left: deque[CachedPrefix] = deque()
        self._next_order = 0

    def __len__(self) -> int:
        """Prefixes that hold a state or are evictable leaves, as of the last refresh.

        Under a policy that orders no pool they are counted, in O(nodes).
        """
        if self._observed or self._tree is None:
            return self._known
        tree = self._tree
        return sum(tree.holds_state(node) or tree.is_evictable_leaf(node) for node in self._nodes())

    # -- life cycle

    def attach(self, tree: TreeReader) -> None:
        self._tree = tree

    def clear(self) -> None:
        """Forget all prefixes; the clock goes on."""
        self._left.extend(sorted(self._prefixes(), key=_ORDER))
        self._notes.clear()
        self._marked.clear()
        self.moved.clear()
        self._known = 0
        self.is_sound = True
        self.report_left()

    def start_over(self, policy: EvictionPolicy) -> None:
        """Put a new policy in force after :meth:`clear`, one that need not forget anything."""
        self._left.clear()
        self.is_sound = True
        self._obey(policy)

    def rebuild(self, policy: EvictionPolicy) -> None:
        """Learn the whole tree anew, for a policy that knows nothing of it, in O(nodes).

        What is known of last accesses and of the order of appearance stays.
        """
        known, self._notes = self._notes, {}
        self._marked.clear()
        self.moved.clear()
        self._left.clear()
        self._known = 0
        self._obey(policy)
        self.is_sound = True
        orders: dict[int, int] = {}
        nodes = list(self._nodes())
        for node in nodes:
            before = known.get(node.id)
            self._notes[node.id] = notes = _Notes(children=len(node.children))
            if before is not None:
                notes.last_access = before.last_access
                if before.prefix is not None:
                    orders[node.id] = before.prefix.order
        if self._observed:
            last = self._next_order
            for node in sorted(nodes, key=lambda n: (orders.get(n.id, last), n.id)):
                self._marked[node.id] = node
            self.refresh()

    def tick(self) -> int:
        """Advance the logical clock by one operation."""
        self.now += 1
        return self.now

    # -- events of the tree

    def changed(self, node: Any) -> None:
        """Children, locks, leaf-ness or data of ``node`` may have changed."""
        if self._observed and node.parent is not None:
            self._marked[node.id] = node

    def state_came_or_went(self, node: Any) -> None:
        if self._observed:
            self.changed(node)
            self._mark_down_to_states(node)

    def leaf_sets_updated(self, node: Any) -> None:
        """The core looked again at whether ``node`` is an evictable leaf."""
        assert self._tree is not None
        if node.parent is None or not self._observed:
            return
        notes = self._noted(node)
        prefix, before = notes.prefix, notes.children
        notes.children = children = len(node.children)
        is_leaf = self._tree.is_evictable_leaf(node)
        host_kv = self._on_host(node)[1]
        if prefix is None:
            differs = is_leaf or (host_kv and not children)
        else:
            differs = (prefix.is_leaf, prefix.host_kv) != (is_leaf, host_kv)
        if differs or children != before:
            self._marked[node.id] = node
        if (before > 1) != (children > 1):
            self._mark_down_to_states(node)

    def state_created(self, node: Any) -> None:
        """A state was put at the end of ``node``, or put there again."""
        self._noted(node).last_access = self.now
        self.state_came_or_went(node)

    def state_consumed(self, node: Any) -> None:
        """A request resumes from the state of ``node``."""
        notes = self._noted(node)
        notes.last_access = self.now
        prefix = notes.prefix
        if prefix is not None:
            prefix.last_access = self.now
            self.policy.on_hit(prefix, self.now)

    def split(self, upper: Any, lower: Any) -> None:
        """``upper`` was put between ``lower`` and its parent; the state, if any, stays below."""
        known = self._noted(lower).last_access
        self._noted(upper).last_access = self.now if known is None else known
        self.changed(upper)
        self.changed(lower)

    def removed(self, node: Any) -> None:
        """``node`` left the tree."""
        self._marked.pop(node.id, None)
        notes = self._notes.pop(node.id, None)
        if notes is not None and notes.prefix is not None:
            self._known -= 1
            self._left.append(notes.prefix)
        self.moved.pop(node.id, None)

    # -- answers

    def depth(self, node: Any) -> int:
        """Tokens from the root to the end of ``node``; O(1) once known, for splits keep it."""
        notes = self._notes.get(node.id)
        if notes is not None and notes.depth:
            return notes.depth
        depth, unknown = 0, []
        while node.parent is not None:
            notes = self._noted(node)
            if notes.depth:
                depth = notes.depth
                break
            unknown.append((notes, len(node.key)))
            node = node.parent
        for notes, tokens in reversed(unknown):
            depth += tokens
            notes.depth = depth
        return depth

    def require_sound(self) -> None:
        """Refuse to answer for a tree of which an event was lost.

        Raises:
            RuntimeError: one was, and the view was not built anew since.
        """
        if not self.is_sound:
            raise RuntimeError("an event of the tree was lost, and the view is not built anew yet")

    def report_left(self) -> None:
        """Report to the policy what left the tree."""
        while self._left:
            prefix = self._left.popleft()
            try:
                self.policy.on_remove(prefix)
            except Exception:
                self.is_sound = False
                raise

    def refresh(self) -> None:
        """Report to the policy all that changed or left."""
        self.report_left()
        self._refresh_marked(list(self._marked.values()))

    def report_some(self) -> None:
        """Report what left and the first few that changed, not only when memory is short.

        To be called between operations on the tree, while it is whole.
        """
        if self._left:
            self.report_left()
        if self._marked:
            self._refresh_marked(list(islice(self._marked.values(), REPORTED_AT_ONCE)))

    @property
    def is_behind(self) -> bool:
        """Whether a decision would meet so many changes that some should be reported before."""
        return len(self._marked) > MOST_MARKED

    def prefix(self, node: Any) -> CachedPrefix:
        """What is known of ``node`` now, whether or not it could be a victim; to be read only."""
        return self._up_to_date(node) or self._describe(node)

    def knows_state(self, id: int) -> bool:
        """Whether requests could resume at the node of that id when the policy last heard of it."""
        notes = self._notes.get(id)
        return notes is not None and notes.prefix is not None and notes.prefix.state_survives

    def may_be_forgotten(self, id: int) -> bool:
        """See :class:`CachedPrefix`, as of when the policy last heard of that node."""
        notes = self._notes.get(id)
        prefix = None if notes is None else notes.prefix
        return prefix is not None and prefix.may_be_forgotten

    def resumption(self, node: Any) -> tuple[int, int]:
        """Tokens that the state of ``node`` saves from and up to; nothing without one."""
        assert self._tree is not None
        known = self._up_to_date(node)
        if known is not None:
            return known.reuse_from if known.has_state else known.depth, known.depth
        depth = self.depth(node)
        if not self._tree.holds_state(node):
            return depth, depth
        above = node.parent
        while above.parent is not None and not self._tree.state_survives(above):
            above = above.parent
        return self.depth(above), depth

    def victim(self, pool: Pool | HostPool | None, excluding: Container[int] = ()) -> Any | None:
        """The node that the policy would evict from ``pool``, ``None`` if it has none.

        A policy that orders shared memory and is asked about one pool alone passes over what may
        not leave that: O(prefixes that stay and come before the victim in its order). No server
        asks so, unless a decision about both pools failed.

        Args:
            pool: ``None``: from memory that both pools share; the policy must order that.
            excluding: ids to pass over.
        """
        assert self._tree is not None
        if self._left or self._marked:
            self.refresh()
        if self._orders_shared and isinstance(pool, Pool):
            excluding = PassedOver(excluding, partial(self._stays, pool))
        while True:
            # Only who orders the host is asked about it.
            asked = cast(Pool, pool or Pool.STATE)
            prefix = self.policy.victim(asked, self.now, excluding)
            if prefix is None:
                return None
            node = self._tree.node_by_id(prefix.id)
            if self._may_leave(node, pool):
                return node
            # A change that no event announced: take note of it and ask again.
            self._refresh_node(node)
            excluding = PassedOver(excluding, partial(eq, prefix.id))

    # -- internals

    def _obey(self, policy: EvictionPolicy) -> None:
        self.policy = policy
        self._observed = bool(policy.pools)
        self._orders_shared = orders_shared_memory(policy)
        self._orders_host = orders_host(policy)

    def _noted(self, node: Any) -> _Notes:
        notes = self._notes.get(node.id)
        if notes is None:
            notes = self._notes[node.id] = _Notes()
        return notes

    def _up_to_date(self, node: Any) -> CachedPrefix | None:
        """What the policy was told of ``node``, if that is all there is to tell."""
        if not self._observed or node.id in self._marked:
            return None
        notes = self._notes.get(node.id)
        return None if notes is None else notes.prefix

    def _last_access(self, notes: _Notes) -> int:
        """If it is unknown, it is now."""
        if notes.last_access is None:
            notes.last_access = self.now
        return notes.last_access

    def _prefixes(self) -> Iterator[CachedPrefix]:
        for notes in self._notes.values():
            if notes.prefix is not None:
                yield notes.prefix

    def _stays(self, pool: Pool, id: int) -> bool:
        prefix = self._notes[id].prefix
        return prefix is None or not prefix.may_leave(pool)

    def _may_leave(self, node: Any, pool: Pool | HostPool | None) -> bool:
        assert self._tree is not None
        if isinstance(pool, HostPool):
            host_state, host_kv = self._on_host(node)
            return host_kv and (host_state if pool is HostPool.STATE else not node.children)
        if pool is not Pool.STATE and self._tree.is_evictable_leaf(node):
            return True
        return (
            pool is not Pool.KV
            and self._tree.holds_state(node)
            and not self._tree.state_is_locked(node)
        )

    def _mark_down_to_states(self, node: Any) -> None:
        assert self._tree is not None
        stack = list(node.children.values())
        while stack:
            child = stack.pop()
            self._marked[child.id] = child
            if not self._tree.state_survives(child):
                stack.extend(child.children.values())

    def _refresh_marked(self, nodes: list[Any]) -> None:
        """Bring these up to date; one at which that fails stays marked, behind the others."""
        failed = None
        for node in nodes:
            del self._marked[node.id]
            try:
                self._refresh_node(node)
            except Exception as error:
                self._marked[node.id] = node
                failed = error
        if failed is not None:
            raise failed

    def _refresh_node(self, node: Any) -> None:
        assert self._tree is not None
        notes = self._noted(node)
        known = notes.prefix
        has_state, is_leaf = self._tree.holds_state(node), self._tree.is_evictable_leaf(node)
        host_state = host_kv = forgettable = False
        if self._orders_host:
            host_state, host_kv = self._on_host(node)
            forgettable = host_kv and (host_state or not node.children)
            if forgettable != (known is not None and known.may_be_forgotten):
                self.moved[node.id] = None
        if not (has_state or is_leaf or host_state or forgettable):
            if known is not None:
                notes.prefix = None
                self._known -= 1
                self.policy.on_remove(known)
            return
        if known is None:
            fresh = self._describe(node)
            self._next_order += 1
            notes.prefix = fresh
            self._known += 1
            self.policy.on_insert(fresh, self.now)
            return
        known.segment_from, known.exclusive_from, known.reuse_from, known.reuse_id = (
            self._surroundings(node)
        )
        known.children = len(node.children)
        known.has_state, known.is_leaf = has_state, is_leaf
        known.host_state, known.host_kv = host_state, host_kv
        known.state_locked = self._tree.state_is_locked(node)
        known.last_access = self._last_access(notes)
        self.policy.on_change(known)

    def _on_host(self, node: Any) -> tuple[bool, bool]:
        """``host_state`` and ``host_kv`` of ``node``."""
        if not self._orders_host:
            return False, False
        tree = cast(HostedTreeReader, self._tree)
        return tree.state_on_host_alone(node), tree.kv_on_host_alone(node)

    def _describe(self, node: Any) -> CachedPrefix:
        assert self._tree is not None
        segment_from, exclusive_from, reuse_from, reuse_id = self._surroundings(node)
        notes = self._noted(node)
        known = notes.prefix
        host_state, host_kv = self._on_host(node)
        return CachedPrefix(
            id=node.id,
            order=self._next_order if known is None else known.order,
            depth=self.depth(node),
            segment_from=segment_from,
            exclusive_from=exclusive_from,
            reuse_from=reuse_from,
            children=len(node.children),
            has_state=self._tree.holds_state(node),
            is_leaf=self._tree.is_evictable_leaf(node),
            state_locked=self._tree.state_is_locked(node),
            last_access=self._last_access(notes),
            reuse_id=reuse_id,
            host_state=host_state,
            host_kv=host_kv,
        )

    def _surroundings(self, node: Any) -> tuple[int, int, int, int | None]:
        """``segment_from``, ``exclusive_from``, ``reuse_from`` and ``reuse_id`` of ``node``."""
        assert self._tree is not None and node.parent is not None
        survives = self._tree.state_survives
        above = node.parent
        segment_from = self.depth(above)
        if above.parent is None:
            return segment_from, segment_from, segment_from, None
        if survives(above):
            return segment_from, segment_from, segment_from, above.id
        while above.parent is not None and not survives(above) and len(above.children) <= 1:
            above = above.parent
        exclusive_from = self.depth(above)
        while above.parent is not None and not survives(above):
            above = above.parent
        reuse_id = None if above.parent is None else above.id
        return segment_from, exclusive_from, self.depth(above), reuse_id

    def _nodes(self) -> Iterator[Any]:
        """All nodes of the tree but the root."""
        assert self._tree is not None
        stack = list(self._tree.root_node.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _check(self) -> None:
        """Compare with a description of the whole tree made from scratch; for tests."""
        assert self._tree is not None
        self.refresh()
        reachable = {node.id: node for node in self._nodes()}
        assert set(self._notes) <= set(reachable), "what is known of a node outlived it"
        assert self._known == len(list(self._prefixes())), "prefixes are miscounted"
        assert self._observed or not self._marked, "marks that nobody asks for"
        for node in reachable.values():
            depth, above = 0, node
            while above.parent is not None:
                depth += len(above.key)
                above = above.parent
            assert self.depth(node) == depth, f"node {node.id}: depth"
            fresh = self._describe(node)
            resumed = fresh.reuse_from if fresh.has_state else fresh.depth
            assert self.resumption(node) == (resumed, depth), f"node {node.id}: resumption"
            known = self._noted(node).prefix
            cached = fresh.state_survives or fresh.is_leaf or fresh.may_be_forgotten
            assert not self._observed or (known is not None) == cached, f"node {node.id}"
            if self._observed and known is not None:
                for name in CachedPrefix.__slots__:
                    assert getattr(known, name) == getattr(fresh, name), f"node {node.id}: {name}"
        check = getattr(self.policy, "_check", None)
        if check is not None:
            check()
