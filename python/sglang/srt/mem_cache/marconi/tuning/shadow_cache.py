"""A prefix cache without data: two pools, running requests, and what they leave behind.

It serves a stream of requests as SGLang 0.5.23 would, on block hashes alone, and says how many
blocks of each prompt would have hit.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sglang.srt.mem_cache.marconi.admission.given_states import GivenStates, LastGiven
from sglang.srt.mem_cache.marconi.admission.rules import (
    ADMISSIONS,
    Chunk,
    SGLangAdmission,
    forwards,
    lies_at,
)
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy, ReturnObserver
from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.prefix import Pool
from sglang.srt.mem_cache.marconi.tuning.shadow_node import ShadowNode
from sglang.srt.mem_cache.marconi.tuning.shadow_tree import ShadowTree

#: Evicted states that are remembered, so that the policy can be told when one is missed.
MOST_EVICTED = 1 << 16


@dataclass(frozen=True)
class ShadowShape:
    """The server that is simulated; lengths in blocks of ``block_tokens`` tokens.

    Attributes:
        kv_blocks: KV pool.
        state_slots: state pool.
        chunk: longest stretch of one prefill forward.
        track: states of generated tokens lie at multiples of it.
        grid: states of prompts lie at multiples of it.
        branches: the server puts states at branch points inside a chunk.
        working_states: state slots that a running request holds beside the tree's; 0 where cached
            states have a pool of their own, compressed.
        admission: which states of a request stay in the tree, a key of :data:`ADMISSIONS`.
        states_per_path: SGLang's ``--mamba-max-states-per-path``; -1 for no cap.
    """

    block_tokens: int
    kv_blocks: int
    state_slots: int
    chunk: int
    track: int
    grid: int = 1
    branches: bool = True
    working_states: int = 3
    admission: str = "sglang"
    states_per_path: int = -1


@dataclass
class _Run:
    """A running request: where it stands, and the slots that the tree does not own.

    Attributes:
        lookup: blocks of its prompt that could have hit.
        inserted: blocks that it has given to the tree, or found there, as far as somebody counts.
    """

    node: ShadowNode
    hashes: array[int]
    lookup: int
    kv: int = 0
    states: int = 0
    branch: int = 0
    inserted: int = 0
    given: LastGiven = field(default_factory=LastGiven)

    @property
    def depth(self) -> int:
        return self.node.end


class _OutOfMemory(Exception):
    """Nothing evictable is left: a scheduler would let the request wait."""


@dataclass
class ShadowCache:
    """A tree, its pools and the requests that run.

    Attributes:
        on_victim: told of every eviction: the pool that was short (``None``: the cap on states a
            path), and the node before it goes.
    """

    shape: ShadowShape
    policy: EvictionPolicy
    on_victim: Callable[[Pool | None, ShadowNode], None] | None = None
    tree: ShadowTree = field(init=False)

    def __post_init__(self) -> None:
        self._admission = ADMISSIONS[self.shape.admission]()
        # SGLang's own admission keeps every state: nothing is to be judged.
        judges = not isinstance(self._admission, SGLangAdmission)
        self._given = GivenStates(self._admission) if judges else None
        self.tree = self._make_tree()
        self.kv_free = self.shape.kv_blocks
        self.states_free = self.shape.state_slots
        self.evictions = 0
        self._runs: dict[int, _Run] = {}
        self._evicted: dict[int, int] = {}

    def _make_tree(self) -> ShadowTree:
        return ShadowTree(self.policy, self.shape.block_tokens, self._given)

    # -- the stream of requests

    def begin(self, run_id: int, hashes: array[int], prompt_tokens: int) -> int:
        """Admit and prefill a request whose prompt fills the blocks of ``hashes``.

        A request that does not fit is dropped without a trace.

        Returns:
            Blocks of its prompt that hit; 0 if it was dropped.
        """
        self.match(run_id, hashes, prompt_tokens)
        hit = self.admit(run_id)
        return hit if self.prefill(run_id) else 0

    def match(self, run_id: int, hashes: array[int], prompt_tokens: int) -> int:
        """Look up a request's prompt and lock what is there; :meth:`end` lets go.

        Returns:
            Blocks of its prompt that hit.
        """
        lookup = self._hittable(hashes, prompt_tokens)
        node, kv_hit = self.tree.look(hashes, lookup)
        self.tree.lock(node)
        branch = self._branch(node.end, kv_hit)
        self._runs[run_id] = _Run(node, hashes, lookup, branch=branch)
        return node.end

    def stands_at(self, run_id: int) -> int:
        """Blocks up to which a request's path is its own or the tree's on the device."""
        return self._runs[run_id].depth

    def admit(self, run_id: int) -> int:
        """A request that was matched is served: what it resumes at is used.

        Returns:
            Blocks of its prompt that hit.
        """
        run = self._runs[run_id]
        self.tree.use(run.node)
        self._report_return(run.hashes, run.node.end, run.lookup)
        return run.node.end

    def prefill(self, run_id: int) -> bool:
        """Prefill an admitted request's prompt; ``False`` if it did not fit, and was dropped."""
        run = self._runs[run_id]
        try:
            self._prefill(run)
        except _OutOfMemory:
            del self._runs[run_id]
            self._release(run)
            return False
        return True

    def fits(self, wanted: Sequence[tuple[int, int]]) -> bool:
        """Whether what running requests still need is free or evictable.

        Args:
            wanted: of each, its id and the blocks of prompt and output that it will fill.
        """
        runs = [(self._runs[run_id], blocks) for run_id, blocks in wanted]
        locked: dict[int, int] = {}
        stood_at = set()
        for run, _ in runs:
            node: ShadowNode | None = run.node
            if run.node.has_state:
                stood_at.add(run.node.id)
            while node is not None and node.id not in locked:
                locked[node.id] = node.end - node.start
                node = node.parent
        # Beside its working states a request needs one for what it gives to the tree.
        states = len(stood_at) + len(runs) * (self.shape.working_states + 1)
        kv = sum(locked.values()) + sum(blocks - run.depth for run, blocks in runs)
        return self._holds(kv, states)

    def _holds(self, kv: int, states: int) -> bool:
        """Whether the pools are as large as so many blocks and states."""
        return kv <= self.shape.kv_blocks and states <= self.shape.state_slots

    def _hittable(self, hashes: array[int], prompt_tokens: int) -> int:
        # The last token of a prompt is always computed, so its block cannot hit.
        return min(len(hashes), max(prompt_tokens - 1, 0) // self.shape.block_tokens)

    def is_running(self, run_id: int) -> bool:
        """It was admitted, and did not end."""
        return run_id in self._runs

    def end(self, run_id: int, generated: array[int] | None, hint: Hint | None = None) -> None:
        """A request finished, having filled the blocks of ``generated`` beyond its prompt's.

        ``None``: it was taken back, and leaves nothing more in the tree. Unknown ids are requests
        that were dropped, or that ran before the stream began.

        Args:
            hint: what was said of what follows.
        """
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        if generated is not None:
            prompt = len(run.hashes)
            run.hashes = run.hashes + generated
            total = len(run.hashes)
            try:
                self._compute(run, total)
                tracked = total // self.shape.track * self.shape.track
                if tracked > run.depth and tracked > prompt:
                    if run.states:
                        # It gives away one of those that it worked on.
                        run.states -= 1
                        self.states_free += 1
                    self._give(run, tracked, prompt_end=prompt)
            except _OutOfMemory:
                pass
        self._release(run)
        if hint is not None:
            self.tree.hinted(run.node, hint)

    def flush(self) -> None:
        """Empty the cache; requests that still run leave nothing behind."""
        before, evicted = self.tree, self._evicted
        before.forget_all()
        if isinstance(self.policy, ReturnObserver):
            for id in evicted.values():
                self.policy.on_forgotten(id)
        self.__post_init__()
        self.tree.go_on(before)

    # -- what the policy is told of evicted states

    def _report_return(self, hashes: array[int], hit: int, lookup: int) -> None:
        """Tell the policy of the deepest evicted state at which the request would have resumed."""
        if not (self._evicted and isinstance(self.policy, ReturnObserver)):
            return
        for block in reversed(hashes[hit:lookup]):
            id = self._evicted.get(block)
            if id is not None:
                # The policy must have heard that the prefix left.
                self.tree.view.report_left()
                self.policy.on_return(id, self.tree.now)
                return

    def _remember(self, node: ShadowNode) -> None:
        end = node.last
        self._evicted.pop(end, None)
        self._evicted[end] = node.id
        if len(self._evicted) > MOST_EVICTED:
            forgotten = self._evicted.pop(next(iter(self._evicted)))
            if isinstance(self.policy, ReturnObserver):
                self.policy.on_forgotten(forgotten)

    # -- what a request does

    def _branch(self, hit: int, kv_hit: int) -> int:
        """Depth at which the prompt leaves what is cached, 0 where no state can be put there."""
        if not (self.shape.branches or self._given):
            return 0
        branch = kv_hit // self.shape.grid * self.shape.grid
        return branch if branch > hit else 0

    def _prefill(self, run: _Run) -> None:
        """One state a forward: at its end, or at the branch point inside it."""
        shape, prompt = self.shape, len(run.hashes)
        whole = Chunk(
            *(run.depth, prompt, prompt, shape.grid),
            snapshots=shape.branches,
            branch=run.branch or None,
        )
        for chunk in forwards(self._admission, whole, shape.chunk):
            self._compute(run, chunk.end)
            if chunk.state_depth is not None and chunk.state_depth > run.depth:
                self._give(run, chunk.state_depth)
        # A prompt that hits as a whole ends in a token that fills no block.
        self._compute(run, prompt)

    def _compute(self, run: _Run, blocks: int) -> None:
        """Hold KV for the first ``blocks`` blocks, and working states."""
        while run.states < self.shape.working_states:
            self._take_state()
            run.states += 1
        missing = blocks - run.depth - run.kv
        if missing > 0:
            self._take_kv(missing)
            run.kv += missing

    def _give(self, run: _Run, blocks: int, prompt_end: int | None = None) -> None:
        """Give the tree the first ``blocks`` blocks, which are computed, with a state.

        Args:
            prompt_end: blocks of the prompt, if the request gives no state after this one.
        """
        depth = run.depth
        self._take_state()
        node, fresh, added = self.tree.insert(run.node, run.hashes, blocks)
        self.states_free += not fresh
        if fresh and self.shape.states_per_path >= 0:
            for beyond in self.tree.beyond_cap(node, self.shape.states_per_path):
                self._evict(None, beyond)
        # What the tree had already is free again; the rest is the tree's.
        self.kv_free += blocks - depth - added
        run.kv -= blocks - depth
        self.tree.unlock(run.node)
        run.node = node
        self.tree.lock(node)
        if self._given is not None:
            self._judge(self._given, run, created=fresh, prompt_end=prompt_end)

    def _judge(
        self, given: GivenStates, run: _Run, *, created: bool, prompt_end: int | None
    ) -> None:
        """Take the request's state before its new one back, where the admission says so."""
        grid = self.shape.grid
        at_stop = bool(run.branch) and lies_at(run.depth, (run.branch,), grid)
        former = given.give(run.given, run.node.id, run.depth, created=created, at_stop=at_stop)
        if former is None or former.node is None:
            return
        node = self.tree.node(former.node)
        may_leave = node is not None and node.has_state and not node.state_locks
        children = len(node.children) if node is not None and may_leave else 0
        ends_prompt = prompt_end is not None and prompt_end - grid < former.depth <= prompt_end
        gone = given.takes_back(former, children, run.node.id if ends_prompt else None)
        if gone and node is not None:
            self.states_free += 1
            self.tree.drop_state(node)

    def _release(self, run: _Run) -> None:
        self.tree.unlock(run.node)
        self.kv_free += run.kv
        self.states_free += run.states

    # -- pools

    def _take_kv(self, blocks: int) -> None:
        if self.kv_free < blocks:
            self.tree.tick()
            while self.kv_free < blocks:
                victim = self.tree.victim(Pool.KV)
                if victim is None:
                    raise _OutOfMemory
                self._evict(Pool.KV, victim)
        self.kv_free -= blocks

    def _take_state(self) -> None:
        if not self.states_free:
            self.tree.tick()
            victim = self.tree.victim(Pool.STATE)
            if victim is None:
                raise _OutOfMemory
            self._evict(Pool.STATE, victim)
        self.states_free -= 1

    def _evict(self, pool: Pool | None, node: ShadowNode) -> None:
        self.evictions += 1
        if self.on_victim is not None:
            self.on_victim(pool, node)
        if node.has_state:
            self.states_free += 1
            if self.policy.pools:
                self._remember(node)
        if node.is_evictable_leaf:
            self.kv_free += node.end - node.start
            self.tree.delete_leaf(node)
        else:
            self.tree.drop_state(node)
