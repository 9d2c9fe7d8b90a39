"""Knows the trace: evicts what is used farthest in the future, weighted by FLOPs and bytes."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

import numpy as np
from sglang.srt.mem_cache.marconi.eviction.savings import CostModel, SurvivingSavings
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from sglang.srt.mem_cache.marconi.tree import TreeReader

from policies.foresight import Foresight
from policies.prompt_tree import PromptNode, PromptTree
from policies.registry import (
    CacheArguments,
    PolicyArguments,
    PolicyContext,
    Recipe,
    policy_family,
)
from policies.scored import CandidateTable


class ClairvoyantPolicy:
    """Lowest FLOPs lost / bytes freed / (next use - now) goes first; time counts requests.

    Bytes are those of the pool that is short, so that states compete by FLOPs alone; in shared
    memory all that come free, of states and leaves in one order. A state's use is a request that
    resumes at it, not one that passes on to a deeper one; what will not be used again goes first,
    and so does KV without a state, from which nothing can resume.

    A strong heuristic, not a proof: with sizes, costs and prefixes that need each other no greedy
    order is optimal, and a policy that beats it on a trace refutes nothing.
    """

    def __init__(self, tree: PromptTree, cost: CostModel, *, shared: bool = False) -> None:
        self.shared = shared
        self.pools = frozenset({Pool.STATE}) if shared else frozenset(Pool)
        self._tree = tree
        self._cost = cost
        self._savings = SurvivingSavings(cost)
        self._foresight = Foresight(tree)
        wants: tuple[Pool | None, ...] = (None,) if shared else tuple(Pool)
        self._tables = {want: CandidateTable(2) for want in wants}
        self._prefixes: dict[int, CachedPrefix] = {}
        self._places: dict[int, PromptNode | None] = {}
        self._with_state: set[int] = set()
        self._now = -1
        self._reader: TreeReader | None = None

    def attach(self, tree: TreeReader) -> None:
        """Be shown the tree, to see which blocks a prefix stands for."""
        self._reader = tree

    def begin(self, index: int, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        """Request ``index`` arrives, counted from 0 over the whole trace."""
        self._now = index
        self._update(self._foresight.advance(index))

    def on_insert(self, prefix: CachedPrefix, now: int) -> None:
        self._prefixes[prefix.id] = prefix
        self._places[prefix.id] = self._locate(prefix.id)
        self.on_change(prefix)

    def on_hit(self, prefix: CachedPrefix, now: int) -> None: ...

    def on_change(self, prefix: CachedPrefix) -> None:
        place = self._places[prefix.id]
        affected = [prefix.id]
        if place is not None and prefix.has_state != (prefix.id in self._with_state):
            if prefix.has_state:
                self._with_state.add(prefix.id)
                affected += self._foresight.add(prefix.id, place, prefix.depth)
            else:
                self._with_state.remove(prefix.id)
                affected += self._foresight.remove(prefix.id)
        self._update(affected)

    def on_remove(self, prefix: CachedPrefix) -> None:
        del self._prefixes[prefix.id], self._places[prefix.id]
        self._with_state.discard(prefix.id)
        for table in self._tables.values():
            table.discard(prefix)
        self._update(self._foresight.remove(prefix.id))

    def victim(self, pool: Pool, now: int, excluding: Container[int] = ()) -> CachedPrefix | None:
        table = self._tables[None if self.shared else pool]
        rows = table.eligible(excluding)
        if not len(rows):
            return None
        worth, next_use = table.columns(rows)
        return table.lowest(rows, worth / np.maximum(next_use - self._now, 1))

    def _update(self, ids: list[int]) -> None:
        for id in ids:
            prefix = self._prefixes[id]
            next_use = self._foresight.next_use(id)
            for want, table in self._tables.items():
                if prefix.may_leave(want):
                    table.put(
                        prefix,
                        (self._worth(prefix, want), math.inf if next_use is None else next_use),
                    )
                else:
                    table.discard(prefix)

    def _worth(self, prefix: CachedPrefix, want: Pool | None) -> float:
        """FLOPs lost for each byte that comes free where memory is short."""
        kv = self._cost.kv_bytes_per_token * (prefix.depth - prefix.exclusive_from)
        state = self._cost.state_bytes
        freed = {Pool.STATE: state, Pool.KV: kv, None: state + prefix.is_leaf * kv}[want]
        return self._savings.flops_saved(prefix) / freed if freed > 0 else 0.0

    def _locate(self, id: int) -> PromptNode | None:
        """The place of the tree node's end among the prompts; ``None`` where no prompt goes."""
        assert self._reader is not None, "attach a tree first"
        node = self._reader.node_by_id(id)
        below = []
        while node.parent is not None and node.id not in self._places:
            below.append(node)
            node = node.parent
        place: PromptNode | None = self._tree.root
        depth = 0
        if node.parent is not None:
            place, depth = self._places[node.id], self._prefixes[node.id].depth
        for node in reversed(below):
            if place is None:
                return None
            ids = self._reader.tokens_of(node.key)
            place = self._tree.descend(place, depth, ids)
            depth += len(ids)
        return place


@policy_family(
    "clairvoyant", "offline: farthest next use weighted by FLOPs a byte; a strong heuristic"
)
def clairvoyant(arguments: PolicyArguments) -> Recipe:
    def recipe(context: PolicyContext) -> CacheArguments:
        tree = PromptTree()
        for index, request in enumerate(context.requests()):
            # As at a lookup: the block of the last token is always computed.
            whole = (request.input_length - 1) // context.block_tokens
            tree.add(index, context.named(request.prompt_ids[:whole]))
        return CacheArguments(ClairvoyantPolicy(tree, context.cost, shared=context.elastic))

    return recipe
