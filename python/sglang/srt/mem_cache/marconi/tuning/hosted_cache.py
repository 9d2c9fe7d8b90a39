"""The shadow of a server with a host tier: what is copied there, forgotten, and copied back."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import cast

from sglang.srt.mem_cache.marconi.eviction.policy import (
    EvictionPolicy,
    HostOrderer,
    orders_host,
)
from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from sglang.srt.mem_cache.marconi.prefix import HostPool, Pool
from sglang.srt.mem_cache.marconi.tuning.hosted_tree import HostedNode, HostedTree, path
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import (
    ShadowCache,
    ShadowShape,
    _OutOfMemory,
    _Run,
)
from sglang.srt.mem_cache.marconi.tuning.shadow_node import ShadowNode

#: Walks of inserting requests over a prefix until it is copied to the host; under ``write_back``
#: it is copied when it is evicted.
WRITE_POLICIES = {"write_through": 1, "write_through_selective": 2, "write_back": 2}
_BACK = "write_back"


@dataclass(frozen=True)
class HostShape:
    """The host's memory below the device's; as SGLang's ``--hicache-*`` flags.

    Attributes:
        kv_blocks, state_slots: its pools.
        write_policy: a key of :data:`WRITE_POLICIES`.
    """

    kv_blocks: int
    state_slots: int
    write_policy: str = "write_through"


@dataclass
class Moved:
    """Blocks of KV and states that were copied."""

    blocks: int = 0
    states: int = 0

    def bytes(self, cost: CostModel, block_tokens: int) -> float:
        """What that is in bytes."""
        return self.blocks * block_tokens * cost.kv_bytes_per_token + self.states * cost.state_bytes


class HostedShadowCache(ShadowCache):
    """See :class:`ShadowCache`; copies are done at once.

    Attributes:
        written, loaded: what was copied to the host, and back to the device.
    """

    def __init__(self, shape: ShadowShape, policy: EvictionPolicy, host: HostShape) -> None:
        self.host = host
        self.written, self.loaded = Moved(), Moved()
        if isinstance(policy, HostOrderer) and policy.pools == frozenset(Pool):
            policy.order_host()
        super().__init__(shape, policy)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.host_kv_free = self.host.kv_blocks
        self.host_states_free = self.host.state_slots
        self._found: dict[int, HostedNode] = {}

    def waited_bytes(self, cost: CostModel) -> float:
        """Bytes of the copies that somebody waited for: under ``write_back`` those to the host too.

        SGLang waits there for what it writes, whose place on the device it needs.
        """
        tokens = self.shape.block_tokens
        written = self.written.bytes(cost, tokens) if self._writes_back else 0.0
        return self.loaded.bytes(cost, tokens) + written

    # -- the stream of requests

    def match(self, run_id: int, hashes: array[int], prompt_tokens: int) -> int:
        lookup = self._hittable(hashes, prompt_tokens)
        found, kv_hit = self._hosted.look(hashes, lookup)
        node = _on_device(found)
        self.tree.lock(node)
        branch = self._branch(found.end, kv_hit)
        self._runs[run_id] = _Run(node, hashes, lookup, branch=branch)
        if found is not node:
            self._found[run_id] = cast(HostedNode, found)
        return found.end

    def admit(self, run_id: int) -> int:
        found = self._found.pop(run_id, None)
        if found is not None and self.tree.node(found.id) is found and found.survives:
            run = self._runs[run_id]
            self._load_back(found)
            self.tree.unlock(run.node)
            deepest, _ = self._hosted.look(run.hashes, run.lookup)
            run.node = _on_device(deepest)
            self.tree.lock(run.node)
        return super().admit(run_id)

    def end(self, run_id: int, *args: object, **options: object) -> None:
        super().end(run_id, *args, **options)  # type: ignore[arg-type]
        self._found.pop(run_id, None)

    # -- copies

    @property
    def _hosted(self) -> HostedTree:
        return cast(HostedTree, self.tree)

    @property
    def _writes_back(self) -> bool:
        return self.host.write_policy == _BACK

    def _make_tree(self) -> HostedTree:
        return HostedTree(self.policy, self.shape.block_tokens, self._given)

    def _give(self, run: _Run, blocks: int, prompt_end: int | None = None) -> None:
        super()._give(run, blocks, prompt_end)
        if not self._writes_back:
            self._write_through(run)

    def _write_through(self, run: _Run) -> None:
        """Copy what enough requests have inserted, and the state that came to a copy."""
        tail = cast(HostedNode, run.node)
        for node in path(tail, self.tree.root):
            if node.end <= run.inserted or not node.on_device:
                continue
            node.inserts += 1
            if not node.on_host and node.inserts >= WRITE_POLICIES[self.host.write_policy]:
                above = [one for one in path(node, self.tree.root) if not one.on_host]
                all(self._back_up(one) for one in above)
        if tail.on_host and not tail.state_on_host:
            self._back_up(tail)
        run.inserted = max(run.inserted, tail.end)

    def _back_up(self, node: HostedNode) -> bool:
        """Copy to the host what it does not have of ``node``; ``False`` if there is no room."""
        blocks = 0 if node.on_host else node.end - node.start
        states = int(node.has_state and not node.state_on_host)
        missing = blocks - self.host_kv_free
        if missing > 0:
            self._make_host_room(HostPool.KV, missing)
        if self.host_kv_free < blocks:
            return False
        self.host_kv_free -= blocks
        if states > self.host_states_free:
            self._make_host_room(HostPool.STATE, 1)
        if states > self.host_states_free:
            self.host_kv_free += blocks
            return False
        self.host_states_free -= states
        self.written.blocks += blocks
        self.written.states += states
        node.on_host = True
        node.state_on_host |= bool(states)
        self._hosted.note_both(node)
        return True

    def _load_back(self, found: HostedNode) -> None:
        """Copy to the device what a request needs of the host, unless there is no room."""
        tree = self._hosted
        found.host_locks += 1
        tree.lock(found)
        above = [node for node in path(found, tree.root) if not node.on_device]
        blocks = sum(node.end - node.start for node in above)
        try:
            self._take_kv(blocks)
            self._take_state_for(found, blocks)
        except _OutOfMemory:
            pass
        else:
            for node in above:
                tree.put_on_device(node)
            for node in reversed(above):
                tree.note_both(node)
            if not found.has_state:
                tree.put_state_on_device(found)
            self.loaded.blocks += blocks
        found.host_locks -= 1
        tree.unlock(found)

    def _take_state_for(self, found: HostedNode, blocks: int) -> None:
        """Take a slot for the state of ``found``, or give its KV's place back."""
        if found.has_state:
            return
        try:
            self._take_state()
        except _OutOfMemory:
            self.kv_free += blocks
            raise
        self.loaded.states += 1

    # -- eviction from the device

    def _evict(self, pool: Pool | None, node: ShadowNode) -> None:
        hosted = cast(HostedNode, node)
        self.evictions += 1
        if self.on_victim is not None:
            self.on_victim(pool, node)
        if not node.is_evictable_leaf:
            # What the cap on states takes is never copied.
            if pool is not None and self._writes_back and self._is_worth_backup(hosted):
                if not self.host_states_free:
                    self._make_host_room(HostPool.STATE, 1)
                self._back_up(hosted)
            self._drop_state(hosted)
            return
        if not hosted.on_host and self._writes_back:
            self._back_up(hosted)
        if hosted.on_host:
            self.kv_free += node.end - node.start
            had_state = node.has_state
            self.states_free += had_state
            self._hosted.demote(hosted)
            if had_state and not hosted.state_on_host:
                self._note_lost(hosted)
        else:
            self._drop_subtree(hosted)

    def _is_worth_backup(self, node: HostedNode) -> bool:
        if node.on_host or node.state_on_host:
            return False
        policy = self.policy
        if not (orders_host(policy) and isinstance(policy, HostOrderer)):
            return True
        self.tree.view.refresh(self.tree.now)
        return node.prefix is None or policy.is_worth_backup(node.prefix)

    def _drop_state(self, node: HostedNode) -> None:
        self.states_free += 1
        self.tree.drop_state(node)
        if not node.state_on_host:
            self._note_lost(node)

    def _note_lost(self, node: HostedNode) -> None:
        """Nobody has the state of ``node`` any more."""
        if self.policy.pools:
            self._remember(node)

    def _drop_subtree(self, node: HostedNode) -> None:
        """Forget ``node`` and what only the host has below it."""
        below = [node]
        for one in below:
            below.extend(cast("list[HostedNode]", list(one.children.values())))
        for one in reversed(below):
            self._delete(one)

    def _delete(self, node: HostedNode) -> None:
        """Forget a leaf of the tree, wherever it lies."""
        blocks = node.end - node.start
        self.kv_free += blocks * node.on_device
        self.states_free += node.has_state
        self.host_kv_free += blocks * node.on_host
        self.host_states_free += node.state_on_host
        if node.survives:
            self._note_lost(node)
        self.tree.delete_leaf(node)

    # -- eviction from the host

    def _make_host_room(self, pool: HostPool, count: int) -> None:
        """Forget ``count`` blocks, or states, as far as that can be."""
        wanted = self._host_free(pool) + count
        if pool is HostPool.KV and self._writes_back:
            self._forget_copies(wanted)
        if not orders_host(self.policy):
            self._forget_least_recent(pool, wanted)
            return
        if pool is HostPool.STATE:
            # Without its KV a state cannot be locked there, and SGLang's own order takes it first.
            while self._host_free(pool) < wanted:
                loose = self._hosted.loose_state()
                if loose is None:
                    break
                self._forget_state(loose)
        stays: set[int] = set()
        while self._host_free(pool) < wanted:
            chosen = self._hosted.host_victim(pool, stays)
            if chosen is None:
                return
            if not self._forget(chosen, pool):
                stays.add(chosen.id)

    def _host_free(self, pool: HostPool) -> int:
        return self.host_kv_free if pool is HostPool.KV else self.host_states_free

    def _forget_copies(self, wanted: int) -> None:
        """Give up KV that the device has too, first where that will not be evicted next."""
        for also_leaves in (False, True):
            for id, node in list(self._hosted.on_both.items()):
                if self.host_kv_free >= wanted:
                    return
                if not (node.on_device and node.on_host):
                    del self._hosted.on_both[id]
                elif not node.host_locks and (also_leaves or not node.is_evictable_leaf):
                    del self._hosted.on_both[id]
                    node.on_host = False
                    self.host_kv_free += node.end - node.start

    def _forget_least_recent(self, pool: HostPool, wanted: int) -> None:
        tree = self._hosted
        while self._host_free(pool) < wanted:
            if pool is HostPool.KV:
                node = tree.host_leaf()
            else:
                node = next(tree.host_states(), None)
            if node is None or not self._forget(node, pool):
                return

    def _forget(self, node: HostedNode, pool: HostPool) -> bool:
        """Let the host forget a leaf, or the state of what is none; ``False`` if it is held."""
        if node.is_host_leaf:
            self._delete(node)
            return True
        if pool is HostPool.KV or node.host_locks:
            return False
        self._forget_state(node)
        return True

    def _forget_state(self, node: HostedNode) -> None:
        self.host_states_free += 1
        self._hosted.forget_state(node)
        self._note_lost(node)


def _on_device(node: ShadowNode) -> ShadowNode:
    """The deepest node from ``node`` up at which a request can resume on the device."""
    while node.parent is not None and not node.has_state:
        node = node.parent
    return node
