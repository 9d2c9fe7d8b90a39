"""The shadow against the cache that serves: hits and victims equal, one by one."""

from __future__ import annotations

import itertools
from array import array
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.cpu_cache import EXAMPLE_COST, CpuCache, server_context
from lab.served import BlockCost
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.marconi.admission.rules import ADMISSIONS, Chunk, forwards
from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.eviction.registry import create_policy, reweight
from sglang.srt.mem_cache.marconi.eviction.savings import SAVINGS
from sglang.srt.mem_cache.marconi.tuning.block_hashes import BlockHasher
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from traces import Request
from tree_harness import path_tokens

BLOCK = 64
SHAPE = ShadowShape(
    block_tokens=BLOCK, kv_blocks=60, state_slots=12, chunk=8, track=4, working_states=3
)
COST = replace(EXAMPLE_COST, state_bytes=EXAMPLE_COST.kv_bytes_per_token * BLOCK * 3)
POLICIES = {
    "lru": {"marconi_evict_policy": 1},
    "both:0": {"marconi_evict_policy": 2, "marconi_eff_weight": 0},
    "both:0.5": {"marconi_evict_policy": 2, "marconi_eff_weight": 0.5},
    "both:2": {"marconi_evict_policy": 2, "marconi_eff_weight": 2},
    "value": {"marconi_evict_policy": 3},
    "value:state": {"marconi_evict_policy": 3, "marconi_evict_pools": "state"},
    "state:1": {
        "marconi_evict_policy": 2,
        "marconi_eff_weight": 1,
        "marconi_evict_pools": "state",
    },
    "lru, judicious": {"marconi_evict_policy": 1, "marconi_admission": "judicious"},
    "both:0.5, judicious": {
        "marconi_evict_policy": 2,
        "marconi_eff_weight": 0.5,
        "marconi_admission": "judicious",
    },
    "value, judicious": {"marconi_evict_policy": 3, "marconi_admission": "judicious"},
}
#: Beside each policy: the cap on states a path.
CAPPED = [*((policy, -1) for policy in POLICIES), ("lru", 2), ("both:0.5", 1), ("value", 2)]

#: A session, blocks to cut off its history, to add to its prompt and to generate, tokens beyond,
#: and how many of the running requests end before it starts.
STEPS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(0, 6),
        st.integers(0, 20),
        st.integers(0, 9),
        st.integers(0, BLOCK - 1),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=60,
)


def chained(ids: list[int]) -> array[int]:
    return array("Q", BlockHasher(1).extend(0, 0, ids).tobytes())


class OutOfMemory(Exception):
    """Nothing evictable is left."""


class RealRun:
    """A running request on real pools: its lock, its working states, its KV beyond the tree's."""

    def __init__(self, cache: CpuCache, matched) -> None:
        self._cache = cache
        self.branch = matched.mamba_branching_seqlen
        self.depth = int(matched.device_prefix_len)
        self._node = matched.last_device_node
        self._lock = cache.cache.lock(self._node)
        self._kv = torch.empty(0, dtype=torch.int64)
        self._states: list[torch.Tensor] = []

    def compute(self, ids: list[int]) -> None:
        while len(self._states) < SHAPE.working_states:
            self._states.append(taken(self._cache.alloc_state()))
        missing = len(ids) - self.depth - len(self._kv)
        if missing > 0:
            self._kv = torch.cat([self._kv, taken(self._cache.alloc_kv(missing))])

    def give(self, ids: list[int], prompt_end: int | None = None) -> None:
        """Give the tree what was computed, with a state; the last one is one it worked on."""
        if len(ids) <= self.depth:
            return
        last = prompt_end is not None
        state = self._states.pop() if last else taken(self._cache.alloc_state())
        tree, given = self._cache.cache, len(ids) - self.depth
        held = tree.path_device_indices(self._node)[: self.depth]
        inserted = tree.insert(
            InsertParams(
                key=self._cache.key(ids),
                value=torch.cat([held, self._kv[:given]]),
                mamba_value=state,
                prev_prefix_len=self.depth,
            )
        )
        if inserted.mamba_exist:
            self._cache.requests.mamba_allocator.free(state)
        self._kv = self._kv[given:]
        tree.unlock(self._lock)
        self._node = inserted.last_device_node
        self._lock = tree.lock(self._node)
        self.depth = len(ids)
        if tree.admission is not None:
            tree.admission.follow(
                self,
                *(self._node, self.depth),
                created=not inserted.mamba_exist,
                stops=() if self.branch is None else (self.branch,),
                prompt_end=prompt_end,
            )

    def release(self) -> None:
        self._cache.cache.unlock(self._lock)
        if len(self._kv):
            self._cache.allocator.free(self._kv)
        for state in self._states:
            self._cache.requests.mamba_allocator.free(state)


def taken(slots: torch.Tensor | None) -> torch.Tensor:
    if slots is None:
        raise OutOfMemory
    return slots


class RealTwin:
    """The cache that serves, with requests that overlap."""

    def __init__(self, options: dict[str, object]) -> None:
        self.cache = CpuCache(
            policy=options["marconi_evict_policy"],
            kv_tokens=SHAPE.kv_blocks,
            state_slots=SHAPE.state_slots,
            cost=BlockCost(COST, BLOCK),
            options={k: v for k, v in options.items() if k != "marconi_evict_policy"},
        )
        self.victims: list[tuple[str, int, str]] = []
        self.runs: dict[int, tuple[RealRun, Request]] = {}
        self.requests: dict[int, Request] = {}
        count = self.cache.cache.count_victim

        def counted(node, kind, **kwargs):
            pool = self.cache.cache._short_of
            self.victims.append((pool, chained(list(path_tokens(node)))[-1], kind.value))
            count(node, kind, **kwargs)

        self.cache.cache.count_victim = counted

    def begin(self, id: int, request: Request) -> int:
        self.requests[id] = request
        prompt, chunk = list(request.prompt_ids), SHAPE.chunk
        matched = self.cache.match(prompt[: (request.input_length - 1) // BLOCK], req=None)
        run = RealRun(self.cache, matched)
        whole = Chunk(run.depth, len(prompt), len(prompt), branch=run.branch)
        admission = ADMISSIONS[self.cache.cache.marconi.config.marconi_admission]()
        try:
            for forward in forwards(admission, whole, chunk):
                run.compute(prompt[: forward.end])
                run.give(prompt[: forward.state_depth])
            run.compute(prompt)
        except OutOfMemory:
            run.release()
            return 0
        self.runs[id] = (run, request)
        return int(matched.device_prefix_len)

    def end(self, id: int, finished: bool) -> None:
        if id not in self.runs:
            return
        run, request = self.runs.pop(id)
        ids = [*request.prompt_ids, *request.output_ids]
        tracked = len(ids) // SHAPE.track * SHAPE.track
        try:
            if finished:
                run.compute(ids)
                if tracked > len(request.prompt_ids):
                    run.give(ids[:tracked], prompt_end=len(request.prompt_ids))
        except OutOfMemory:
            pass
        finally:
            run.release()


class ShadowTwin(ShadowCache):
    """The shadow, recording victims in the same form."""

    def __init__(self, config: MarconiConfig, cap: int = -1) -> None:
        shape = replace(SHAPE, admission=config.marconi_admission, states_per_path=cap)
        super().__init__(shape, create_policy(config, SAVINGS[config.marconi_savings](COST)))
        self.on_victim = self.note
        self.victims: list[tuple[str, int, str]] = []

    def _report_return(self, hashes, hit, lookup) -> None:
        """Nothing: the real twin's matches name no request, so its policy hears of none either."""

    def note(self, pool, node) -> None:
        kind = "state_only"
        if node.is_evictable_leaf:
            kind = "leaf_with_state" if node.has_state else "leaf_kv_only"
        self.victims.append(("path_cap" if pool is None else pool.value, node.last, kind))


def requests(steps):
    """(ids to end, whether they finished, id, request) for every step."""
    fresh = itertools.count(100)
    histories = [[1, 2, 3], [1, 2, 4], [5], [], []]
    running: list[int] = []
    for id, (session, cut, grow, output, extra, ending) in enumerate(steps):
        history = histories[session]
        if cut:
            del history[max(len(history) - cut, 0) :]
        history += itertools.islice(fresh, grow)
        tokens = len(history) * BLOCK + extra
        generated = list(itertools.islice(fresh, output))
        ended, running = running[:ending], running[ending:]
        if tokens:
            running.append(id)
            request = Request(0, None, tokens, output * BLOCK, tuple(history), tuple(generated))
            yield ended, extra % 4 != 0, id, request
        histories[session] = history + generated
        if len(history) > 40:
            histories[session] = history[:5]


def serve_step(real: RealTwin, shadow: ShadowTwin, step) -> None:
    ended, finished, id, request = step
    for before in ended:
        real.end(before, finished)
        shadow.end(before, generated(real.requests[before]) if finished else None)
    hit = shadow.begin(id, chained(list(request.prompt_ids)), request.input_length)
    assert hit == real.begin(id, request)


def generated(request: Request) -> array[int]:
    prompt = list(request.prompt_ids)
    return chained(prompt + list(request.output_ids))[len(prompt) :]


@pytest.mark.parametrize(("policy", "cap"), CAPPED)
def test_hits_and_victims_are_those_of_the_real_cache(policy, cap):
    victims = taken_back = 0

    @settings(max_examples=60, derandomize=True)
    @given(STEPS)
    def run(steps):
        nonlocal victims, taken_back
        config = MarconiConfig.from_options(POLICIES[policy])
        with server_context(chunk=1, max_states_per_path=cap):
            real, shadow = RealTwin(POLICIES[policy]), ShadowTwin(config, cap)
            for step in requests(steps):
                serve_step(real, shadow, step)
            assert shadow.victims == real.victims
            assert shadow.tree.now == real.cache.cache.view.now
            victims += len(real.victims)
            taken_back += real.cache.cache.stats.states_taken_back
            free = len(real.cache.requests.mamba_allocator.free_slots)
            assert shadow.states_free == free
            assert shadow.kv_free == real.cache.allocator.available_size()

    run()
    assert victims > 100
    assert (taken_back > 20) == ("judicious" in policy)


@pytest.mark.parametrize(("policy", "weight"), [("both:0", 2.0), ("both:2", 0.5), ("state:1", 0.0)])
def test_a_weight_that_is_put_in_force_later_has_the_real_victims_too(policy, weight):
    victims = 0

    @settings(max_examples=40, derandomize=True)
    @given(STEPS, st.integers(0, 40))
    def run(steps, at):
        nonlocal victims
        config = MarconiConfig.from_options(POLICIES[policy])
        with server_context(chunk=1):
            real, shadow = RealTwin(POLICIES[policy]), ShadowTwin(config)
            for i, step in enumerate(requests(steps)):
                if i == at:
                    real.cache.cache.adopt(weight)
                    reweight(shadow.policy, weight)
                serve_step(real, shadow, step)
            assert shadow.victims == real.victims
            victims += len(real.victims)

    run()
    assert victims > 100


def test_every_slot_is_free_or_accounted_for():
    shadow = ShadowTwin(MarconiConfig.from_options(POLICIES["both:0.5"]))
    for id in range(300):
        ids = [id % 7, *range(1000 + id % 40, 1010 + id % 40)]
        shadow.begin(id, chained(ids), len(ids) * BLOCK + 1)
        shadow.end(id, chained([*ids, 5, 6])[len(ids) :])
        nodes = shadow.tree._nodes.values()
        assert shadow.kv_free + sum(n.end - n.start for n in nodes) == SHAPE.kv_blocks
        assert shadow.states_free + sum(n.has_state for n in nodes) == SHAPE.state_slots
        assert not any(node.locks or node.state_locks for node in nodes)
        shadow.policy._check()
    assert shadow.evictions > 100


@pytest.mark.parametrize("policy", ["both:0", "both:2", "value"])
def test_a_flush_leaves_the_policy_nothing_that_is_gone(policy):
    """Its next victims are those of the new tree, whose ids are new and whose clock goes on."""
    shadow = ShadowTwin(MarconiConfig.from_options(POLICIES[policy]))
    for id in range(90):
        if id % 30 == 15:
            before = shadow.tree.now
            shadow.flush()
            assert shadow.tree.now == before and len(shadow.tree) == 0
        ids = [*range(1000 * id, 1000 * id + 10), id % 3]
        shadow.begin(id, chained(ids), len(ids) * BLOCK + 1)
        shadow.end(id, chained([*ids, 5, 6])[len(ids) :])
        shadow.policy._check()
    assert shadow.evictions > 20


def test_hashes_chain_and_do_not_depend_on_how_a_sequence_is_cut():
    hasher = BlockHasher(4)
    tokens = list(range(5, 45))
    start = hasher.start(("adapter", None))
    whole = hasher.extend(start, 0, array("q", tokens))
    assert len(whole) == 10 and len(set(whole.tolist())) == 10
    first = hasher.extend(start, 0, tokens[:14])
    rest = hasher.extend(int(first[-1]), 3, tokens[12:])
    assert [*first.tolist(), *rest.tolist()] == whole.tolist()
    assert hasher.extend(hasher.start(("other", None)), 0, tokens)[0] != whole[0]
    changed = [*tokens[:8], 1, *tokens[9:]]
    other = hasher.extend(start, 0, changed)
    assert [a == b for a, b in zip(whole, other, strict=True)] == [True] * 2 + [False] * 8
    swapped = hasher.extend(start, 0, tokens[4:8] + tokens[:4])
    assert set(swapped.tolist()).isdisjoint(whole.tolist()[:1]) and swapped[0] != whole[0]
    assert len(hasher.extend(start, 0, tokens[:3])) == 0
