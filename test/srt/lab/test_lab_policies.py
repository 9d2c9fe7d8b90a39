"""The simulator's policies: names, victims against brute force, and whole runs on real caches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import policies
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.cpu_cache import EXAMPLE_COST, CpuCache, path_tokens, server_context
from lab.replay_cache import Replay
from lab.served import BlockCost
from policies import PolicyContext, PolicyError, cache_arguments, check_policy
from policies.clairvoyant import ClairvoyantPolicy
from policies.gdsf import GdsfPolicy
from policies.infinite import distinct_blocks
from policies.prompt_tree import PromptTree, first_after
from policies.rank import RankPolicy
from policies.seglen import SegmentLengthPolicy
from policies.superseded import SupersededFirstPolicy
from sglang.srt.mem_cache.marconi.eviction.savings import SurvivingSavings, flop_efficiency
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from test_simulate import chat_trace
from traces import Request

BOTH = frozenset(Pool)
SAVINGS = SurvivingSavings(EXAMPLE_COST)
ONLINE = (
    *("lru", "lru-python", "slru", "slru:3", "lfu", "tlru", "tlru:2000:500", "cap:0", "cap:2"),
    *("server:1", "server:2", "server:2:0.25", "marconi:0", "marconi:1", "marconi-state:0.5"),
    *("marconi-rank:1", "marconi-rank-state:1", "seglen", "seglen-state", "gdsf", "gdsf-state"),
    *("superseded", "server:3", "value", "value:no-returns"),
    *("s3fifo", "s3fifo:node", "s3fifo:tail", "arc", "arc:line", "lirs", "lirs:tail"),
    *("lhd", "lhd:line", "2q", "2q:line", "sieve", "sieve:tail"),
)


# -- names


@pytest.mark.parametrize(
    "spec",
    [
        *("", "best", "lru:1", "cap", "cap:-1", "cap:x", "cap:1:2", "marconi", "marconi:nan"),
        *(
            "marconi:-1",
            "server",
            "server:7",
            "value:x",
            "server:2:x",
            "server:1:0.5",
            "tlru:1:2:3",
        ),
        *("s3fifo:x", "arc:line:1", "lhd:0.5"),
        *("slru:0", "seglen:1", "infinite:2", "clairvoyant:1", "marconi-rank"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(spec):
    with pytest.raises(PolicyError) as caught:
        check_policy(spec)
    assert f"--policy is {spec!r}" in str(caught.value) and "allowed" in str(caught.value)


def test_every_policy_has_a_line_of_help_and_a_tested_value():
    tested = {spec.split(":")[0] for spec in (*ONLINE, "infinite", "clairvoyant")}
    assert tested == set(policies.policy_names())
    assert len(policies.policy_help().splitlines()) == len(tested)


def test_a_policy_s_lengths_are_turned_into_blocks(context):
    arguments = cache_arguments("tlru:640:128", context([]))
    assert arguments.kv_order_config == {"threshold": 10, "next_prompt_estimate": 2}
    assert cache_arguments("cap:3", context([])).max_states_per_path == 3


# -- victims against their definitions


def scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [1.0 if high == low else (value - low) / (high - low) for value in values]


def ranked(values: list[float]) -> list[float]:
    if min(values) == max(values):
        return [1.0 for _ in values]
    return [sum(other < value for other in values) / (len(values) - 1) for value in values]


def rank_scores(candidates, pool):
    efficiency = ranked([flop_efficiency(SAVINGS, p) for p in candidates])
    recency = ranked([p.last_access for p in candidates])
    return [a + 0.5 * b for a, b in zip(recency, efficiency, strict=True)]


def seglen_scores(candidates, pool):
    length = scaled([p.depth - p.reuse_from for p in candidates])
    recency = scaled([p.last_access for p in candidates])
    return [a + 0.85 * b for a, b in zip(recency, length, strict=True)]


def superseded_scores(candidates, pool):
    return [(0 if p.children == 1 else 1, p.last_access) for p in candidates]


PREFIXES = st.builds(
    lambda a, b, c, d, **rest: CachedPrefix(
        id=0, order=0, reuse_from=a, exclusive_from=a + b, segment_from=a + b + c,
        depth=a + b + c + d, **rest
    ),
    *(st.integers(0, 30), st.integers(0, 5), st.integers(0, 5), st.integers(1, 30)),
    children=st.integers(0, 3),
    has_state=st.booleans(),
    is_leaf=st.booleans(),
    state_locked=st.booleans(),
    last_access=st.integers(0, 9),
)  # fmt: skip
STEPS = st.lists(
    st.tuples(st.sampled_from(["insert", "hit", "change", "remove"]), st.integers(0, 20), PREFIXES),
    max_size=40,
)


def play(policy, steps, cached: dict[int, CachedPrefix], now: int = 10) -> int:
    """Report random events of what is ``cached``; returns the tick after them."""
    for event, pick, drawn in steps:
        now += 1
        known = list(cached.values())
        if event == "insert" or not known:
            drawn.id = drawn.order = now
            cached[now] = drawn
            policy.on_insert(drawn, now)
            continue
        prefix = known[pick % len(known)]
        if event == "hit":
            prefix.last_access = now
            policy.on_hit(prefix, now)
        elif event == "change":
            for name in CachedPrefix.__slots__:
                if name not in ("id", "order", "last_access"):
                    setattr(prefix, name, getattr(drawn, name))
            policy.on_change(prefix)
        else:
            del cached[prefix.id]
            policy.on_remove(prefix)
    return now


def allowed(cached, pool, excluding):
    return [p for p in cached.values() if p.may_leave(pool) and p.id not in excluding]


@pytest.mark.parametrize(
    ("make", "scores", "spares_forks"),
    [
        (lambda: RankPolicy(SAVINGS, 0.5, BOTH), rank_scores, True),
        (lambda: SegmentLengthPolicy(BOTH), seglen_scores, True),
        (SupersededFirstPolicy, superseded_scores, False),
    ],
    ids=["rank", "seglen", "superseded"],
)
@settings(max_examples=150, deadline=None)
@given(steps=STEPS, pool=st.sampled_from(Pool), excluding=st.sets(st.integers(11, 30), max_size=5))
def test_the_victim_is_the_lowest_by_definition(make, scores, spares_forks, steps, pool, excluding):
    policy = make()
    cached: dict[int, CachedPrefix] = {}
    now = play(policy, steps, cached)
    victim = policy.victim(pool, now, excluding)
    candidates = allowed(cached, pool, excluding) if pool in policy.pools else []
    if spares_forks:
        candidates = [p for p in candidates if p.children <= 1] or candidates
    if not candidates:
        assert victim is None
        return
    assert victim is not None
    values = scores(candidates, pool)
    of = dict(zip((p.id for p in candidates), values, strict=True))
    assert of[victim.id] == pytest.approx(min(values))
    assert victim.order == min(p.order for p in candidates if of[p.id] == of[victim.id])


@settings(max_examples=150, deadline=None)
@given(rounds=st.lists(st.tuples(STEPS, st.sampled_from(Pool)), min_size=1, max_size=4))
def test_gdsf_by_its_definition(rounds):
    cached: dict[int, CachedPrefix] = {}
    clock = dict.fromkeys(Pool, 0.0)
    uses: dict[int, int] = {}
    at_use: dict[int, dict[Pool, float]] = {}

    class Watched(GdsfPolicy):
        """Uses and clocks written down by the test itself."""

        def on_insert(self, prefix, now):
            uses[prefix.id], at_use[prefix.id] = 1, dict(clock)
            super().on_insert(prefix, now)

        def on_hit(self, prefix, now):
            uses[prefix.id] += 1
            at_use[prefix.id] = dict(clock)
            super().on_hit(prefix, now)

    policy = Watched(SAVINGS, BOTH)
    now = 10
    for steps, pool in rounds:
        now = play(policy, steps, cached, now)
        victim = policy.victim(pool, now)
        candidates = allowed(cached, pool, ())
        if not candidates:
            assert victim is None
            continue

        def worth(p, pool=pool):
            return at_use[p.id][pool] + uses[p.id] * flop_efficiency(SAVINGS, p)

        best = min(candidates, key=lambda p: (worth(p), p.order))
        assert victim is best
        clock[pool] = max(clock[pool], worth(best))
        del cached[best.id]
        policy.on_remove(best)


# -- the future


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=25))
def test_the_prompt_tree_knows_who_passes_each_prefix(prompts):
    tree = PromptTree()
    seen: set[tuple[int, ...]] = set()
    for i, prompt in enumerate(prompts):
        parts = {tuple(prompt[: n + 1]) for n in range(len(prompt))}
        assert tree.add(i, tuple(prompt)) == len(parts - seen)
        seen |= parts
    for part in seen:
        node = tree.descend(tree.root, 0, part)
        assert node is not None and node.start < len(part) <= node.end
        passing = [i for i, p in enumerate(prompts) if tuple(p[: len(part)]) == part]
        assert node.passing == passing
        for now in (-1, 3, 30):
            assert first_after(node.passing, now) == min(
                (i for i in passing if i > now), default=None
            )
        if len(part) == node.end:
            assert node.ending == [i for i in passing if tuple(prompts[i]) == part]
    assert tree.descend(tree.root, 0, [3]) is None


class CheckedClairvoyant(ClairvoyantPolicy):
    """Compares every victim with one found by reading all requests to come."""

    def __init__(self, prompts, tree, *, shared) -> None:
        super().__init__(tree, EXAMPLE_COST, shared=shared)
        self._prompts = prompts
        self.checked = 0

    def attach(self, tree) -> None:
        super().attach(tree)
        self._core = tree

    def victim(self, pool, now, excluding=()):
        victim = super().victim(pool, now, excluding)
        paths = {id: path_tokens(self._core.node_by_id(id)) for id in self._prefixes}
        assert all(len(path) == self._prefixes[id].depth for id, path in paths.items())
        states = {path: id for id, path in paths.items() if self._prefixes[id].has_state}
        next_use: dict[int, int] = {}
        for i in range(self._now + 1, len(self._prompts)):
            prompt = self._prompts[i]
            for depth in range(len(prompt), 0, -1):
                if prompt[:depth] in states:
                    next_use.setdefault(states[prompt[:depth]], i)
                    break
        want = None if self.shared else pool
        candidates = allowed(self._prefixes, want, excluding)
        worth = {
            p.id: self._lost(p, want) / (next_use.get(p.id, math.inf) - self._now)
            for p in candidates
        }
        expected = min(candidates, key=lambda p: (worth[p.id], p.order), default=None)
        assert victim is expected
        self.checked += 1
        return victim

    @staticmethod
    def _lost(p: CachedPrefix, want: Pool | None) -> float:
        flops = EXAMPLE_COST.flops(p.reuse_from, p.depth) if p.has_state else 0
        if want is Pool.STATE:
            return flops / EXAMPLE_COST.state_bytes
        kv = EXAMPLE_COST.kv_bytes_per_token * (p.depth - p.exclusive_from)
        if want is Pool.KV:
            return flops / kv
        return flops / (EXAMPLE_COST.state_bytes + kv * p.is_leaf)


# -- whole runs


def requests(seed: int, count: int = 110) -> list[Request]:
    return [
        Request(
            record["timestamp"],
            record["session_id"],
            record["input_length"],
            record["output_length"],
            tuple(record["hash_ids"]),
            tuple(record["output_hash_ids"]),
        )
        for record in chat_trace(seed, requests=count)
    ]


@pytest.fixture
def context():
    def make(trace: list[Request], kv: int = 300, states: int = 16) -> PolicyContext:
        def read() -> Iterator[Request]:
            return iter(trace)

        return PolicyContext(BlockCost(EXAMPLE_COST, 64), 64, kv, states, read)

    return make


def run(context: PolicyContext, spec: str) -> tuple[int, CpuCache]:
    """Tokens hit by the context's requests, and the cache afterwards; nothing is lost or failed."""
    arguments = cache_arguments(spec, context)
    begin = getattr(arguments.policy, "begin", None)
    hit = 0
    with server_context(chunk=1, max_states_per_path=arguments.max_states_per_path):
        cache = CpuCache(**arguments.for_cache(context))
        replay = Replay(cache, context.block_tokens)
        for index, request in enumerate(context.requests()):
            if begin is not None:
                begin(index, request.prompt_ids, request.output_ids)
            served = replay.serve(request)
            assert served.served
            hit += served.hit_tokens
        cache.cache.sanity_check()
    kv_held = len(cache.cache.all_values_flatten())
    assert kv_held + cache.allocator.available_size() == cache.kv_tokens
    held = len(cache.cache.all_mamba_values_flatten())
    assert held + len(cache.requests.mamba_allocator.free_slots) == cache.state_slots
    stats = getattr(cache.cache, "stats", None)
    if stats is not None:
        assert stats.errors == 0 and not stats.fallbacks.total()
        cache.cache.view._check()
    return hit, cache


@pytest.mark.parametrize(("seed", "kv", "states"), [(1, 300, 16), (2, 200, 40)])
def test_every_policy_completes_between_nothing_and_infinite(context, seed, kv, states):
    made = context(requests(seed), kv, states)
    bound, _ = run(made, "infinite")
    hits = {spec: run(made, spec)[0] for spec in ONLINE}
    foreseen, _ = run(made, "clairvoyant")
    assert min(hits.values()) > 0 and max(*hits.values(), foreseen) <= bound
    assert hits["lru"] == hits["lru-python"] == hits["server:1"] == hits["tlru"]
    assert foreseen >= max(hits.values())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_infinite_evicts_nothing_and_sizes_its_pools_to_the_trace(seed):
    trace = requests(seed, 40)
    made = PolicyContext(EXAMPLE_COST, 64, 0, 0, lambda: iter(trace))
    blocks, _ = distinct_blocks(made)
    paths = {
        (*r.prompt_ids, *r.output_ids)[:n]
        for r in trace
        for n in range(1, len(r.prompt_ids) + len(r.output_ids) + 1)
    }
    assert blocks == len(paths)
    hit, _ = run(made, "infinite")
    sized = cache_arguments("infinite", made)
    counted, cache = run(
        replace(made, kv_tokens=sized.kv_tokens, state_slots=sized.state_slots), "server:1"
    )
    assert counted == hit and not cache.cache.stats.victims.total()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(300, 12), (150, 16), (200, 60)]), st.booleans())
def test_clairvoyant_s_victims_by_reading_all_that_is_to_come(seed, pools, shared):
    trace = requests(seed, 60)
    prompts = [r.prompt_ids[: (r.input_length - 1) // 64] for r in trace]
    tree = PromptTree()
    for i, prompt in enumerate(prompts):
        tree.add(i, prompt)
    policy = CheckedClairvoyant(prompts, tree, shared=shared)
    with server_context(chunk=1):
        cache = CpuCache(policy, kv_tokens=pools[0], state_slots=pools[1], elastic=shared)
        replay = Replay(cache, 64)
        for index, request in enumerate(trace):
            policy.begin(index, request.prompt_ids, request.output_ids)
            replay.serve(request)
        assert not cache.cache.stats.errors and not cache.cache.stats.fallbacks.total()
    assert policy.checked
