"""Judicious admission on the real cache: what stays, what is taken back, and no slot lost."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import ClassVar

import pytest
import test_stateful_cache
import torch
from hypothesis import strategies as st
from hypothesis.stateful import rule
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from tree_harness import TreeHarness, live, path_tokens, server_context

CORES = ("python", "rust")


@pytest.fixture(params=CORES)
def harness(request):
    with server_context(chunk=1):
        yield TreeHarness(1, core=request.param, marconi_admission="judicious")


def sequence(length: int, first: int) -> list[int]:
    return [first * 1000 + i for i in range(length)]


class Running:
    """One running request: prefill by chunks, each given to the tree, as a scheduler does."""

    def __init__(self, harness: TreeHarness, tokens: list[int], prompt: int | None = None) -> None:
        self.harness = harness
        self.tokens = tokens
        self.prompt = len(tokens) if prompt is None else prompt
        result = harness.match(tokens[:-1])
        self.depth = int(result.device_prefix_len)
        self.stops = (result.mamba_branching_seqlen or 0,)
        self.node = result.last_device_node
        self.held = harness.cache.lock(self.node)

    def compute(self, depth: int, *, finished: bool = False) -> bool:
        """Give the tree all tokens up to ``depth``; ``False`` if memory could not be found."""
        if depth <= self.depth:
            return True
        harness = self.harness
        kv, state = harness.alloc_kv(depth - self.depth), harness.alloc_state()
        if kv is None or state is None:
            if kv is not None:
                harness.allocator.free(kv)
            if state is not None:
                harness.requests.mamba_allocator.free(state)
            return False
        held = harness.cache.path_device_indices(self.node)[: self.depth]
        result = harness.cache.insert(
            InsertParams(
                key=harness.key(self.tokens[:depth]),
                value=torch.cat([held, kv]),
                mamba_value=state,
                prev_prefix_len=self.depth,
            )
        )
        if result.mamba_exist:
            harness.requests.mamba_allocator.free(state)
        harness.cache.unlock(self.held)
        self.node, self.depth = result.last_device_node, depth
        self.held = harness.cache.lock(self.node)
        harness.cache.admission.follow(
            self,
            *(self.node, depth),
            created=not result.mamba_exist,
            stops=self.stops,
            prompt_end=self.prompt if finished else None,
        )
        return True

    def end(self) -> None:
        self.harness.cache.unlock(self.held)


def state_depths(harness: TreeHarness) -> list[int]:
    return sorted(map(len, harness.states()))


def serve(harness: TreeHarness, tokens: list[int], *depths: int, prompt: int | None = None) -> int:
    """Run a request through to its end; returns its hit."""
    running = Running(harness, tokens, prompt)
    hit = running.depth
    for depth in (*depths, len(tokens)):
        assert running.compute(depth, finished=depth == len(tokens))
    running.end()
    harness.check()
    return hit


def test_chunk_ends_do_not_stay_when_the_request_goes_on(harness):
    serve(harness, sequence(40, 1), 8, 16, 24, 32)
    assert state_depths(harness) == [40]
    stats = harness.cache.stats
    assert stats.states_taken_back == 4 and not stats.victims and stats.states_evicted == 0
    assert harness.held_by_tree() == (40, 1), "their KV stays"
    assert harness.hit(sequence(40, 1)) == 40 and harness.hit(sequence(39, 1)) == 0


def test_a_request_that_ends_early_leaves_its_deepest_state(harness):
    running = Running(harness, sequence(40, 1))
    assert running.compute(8) and running.compute(16)
    running.end()
    harness.check()
    assert state_depths(harness) == [16]


def test_a_branch_point_stays_and_so_does_the_end(harness):
    shared = sequence(20, 1)
    serve(harness, shared + sequence(10, 2), 8, 16)
    assert serve(harness, shared + sequence(10, 3), 8, 20) == 0
    assert state_depths(harness) == [20, 30, 30]
    assert serve(harness, shared + sequence(10, 4)) == 20


def test_a_state_that_another_request_found_stays(harness):
    tokens = sequence(40, 1)
    running = Running(harness, tokens)
    assert running.compute(16)
    assert harness.hit([*tokens[:20], 9]) == 16
    assert running.compute(40)
    running.end()
    assert state_depths(harness) == [16, 40]


def test_a_state_of_another_request_is_not_taken_back(harness):
    tokens = sequence(40, 1)
    serve(harness, tokens[:16])
    second = Running(harness, tokens)
    assert second.compute(24) and second.compute(40)
    second.end()
    assert state_depths(harness) == [16, 40]


def test_a_locked_state_and_a_fork_stay(harness):
    tokens = sequence(40, 1)
    running = Running(harness, tokens)
    assert running.compute(16)
    lock = harness.cache.lock(running.node)
    assert running.compute(24)
    harness.unlock(lock)
    serve(harness, tokens[:24] + sequence(4, 2))
    assert running.compute(40)
    running.end()
    assert state_depths(harness) == [16, 24, 28, 40]
    assert harness.cache.stats.states_taken_back == 0


def test_a_request_outlives_a_flush_and_the_eviction_of_its_state(harness):
    running = Running(harness, sequence(40, 1))
    assert running.compute(8)
    running.end()
    harness.cache.reset()
    harness.requests.mamba_allocator.clear()
    harness.allocator.clear()
    again = Running(harness, sequence(40, 1))
    again.marconi_run = running.marconi_run
    assert again.compute(8) and again.compute(40)
    again.end()
    harness.check()
    assert state_depths(harness) == [40]


def test_what_was_taken_back_counts_as_never_admitted(harness):
    tokens = sequence(40, 1)
    serve(harness, tokens, 16)
    req = SimpleNamespace(kv=None, rid="r", session=None, origin_input_ids=tokens[:20])
    harness.match(tokens[:20], req=req)
    harness.cache.count_request(req)
    lost = harness.cache.stats.lost_tokens
    assert (lost["never_admitted"], lost["state_evicted"], lost["kv_evicted"]) == (20, 0, 0)


def conversation(
    harness: TreeHarness, session: int, turns: int, *, sends_output: bool
) -> list[int]:
    """Hits of a conversation whose turns add a prompt of 10 tokens and an output of 6."""
    history, hits = [], []
    for turn in range(turns):
        prompt = history + sequence(10, 100 * session + 2 * turn)
        output = sequence(6, 100 * session + 2 * turn + 1)
        hits.append(serve(harness, prompt + output, len(prompt), prompt=len(prompt)))
        history = prompt + output if sends_output else prompt + output[:2]
    return hits


def test_ends_of_prompts_stay_once_conversations_are_seen_to_need_them(harness):
    assert conversation(harness, 1, 4, sends_output=True) == [0, 16, 32, 48]
    assert state_depths(harness) == [16, 32, 48, 64], "one state a turn"
    harness.cache.evict_mamba(4)
    first, second, third, fourth = conversation(harness, 2, 4, sends_output=False)
    assert (first, second) == (0, 0), "taken back: nothing has shown yet that it is of use"
    assert third >= 22 and fourth >= 34
    assert harness.cache.stats.errors == 0


@pytest.mark.parametrize(
    ("other", "waits"),
    [
        ({"extend_end": 8}, True),  # cut at the boundary, in this forward
        ({"extend_end": 5}, True),  # a later chunk reaches it
        ({"extend_end": 12}, False),  # prefilled past it, with no state there
        ({"extend_end": 8, "prefix_len": 8}, False),
        ({"extend_end": 8, "cache_salt": "b"}, False),
        ({"extend_end": 8, "full_untruncated_fill_ids": array("q", [9] * 12)}, False),
    ],
)
def test_a_request_waits_for_a_state_that_another_is_making(harness, other, waits):
    def request(**fields):
        tokens = array("q", range(12))
        start = {"prefix_len": 0, "mamba_branching_seqlen": 8, "extra_key": None}
        given = {"cache_salt": "a", "full_untruncated_fill_ids": tokens, "origin_input_ids": tokens}
        return SimpleNamespace(**start | given | fields)

    adder = SimpleNamespace(
        can_run_list=[request(**other)], new_chunked_req=object(), rem_chunk_tokens=64
    )
    whole = SimpleNamespace(prefix_len=0, extend_len=12, is_chunked=False)
    shape = harness.cache.admission.cuts.shape(adder, request(), whole, chunking=False)
    assert (shape is not whole) == waits
    assert harness.cache.stats.errors == 0


def test_an_error_leaves_sglangs_admission(harness, monkeypatch):
    admission = harness.cache.admission
    monkeypatch.setattr(admission.given, "_admission", None)
    monkeypatch.setattr(admission.cuts, "_admission", None)
    request = SimpleNamespace(
        mamba_branching_seqlen=None, prefix_len=0, full_untruncated_fill_ids=range(90)
    )
    adder = SimpleNamespace(rem_chunk_tokens=64, dllm_config=None, chunked_req_limit=None)
    admission.cuts.limit(adder, request)
    assert adder.chunked_req_limit is None
    result = SimpleNamespace(last_device_node=1, mamba_exist=False)
    for key in ([1, 2], [1, 2, 3]):
        admission.inserted(request, result, SimpleNamespace(key=key), finished=False)
    assert harness.cache.stats.errors == 1


class AdmittedLife(test_stateful_cache.CacheLife):
    """The random life of the cache, with running requests whose states are taken back."""

    options: ClassVar[dict[str, object]] = {"marconi_admission": "judicious"}

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Running] = []

    @rule(tokens=test_stateful_cache.TOKENS)
    def start(self, tokens: list[int]) -> None:
        if len(self.running) < 2:
            self.running.append(Running(self.harness, tokens))

    @rule(which=st.integers(0, 1), step=st.integers(1, 9))
    def go_on(self, which: int, step: int) -> None:
        if which < len(self.running):
            running = self.running[which]
            depth = min(running.depth + step, len(running.tokens))
            running.compute(depth, finished=depth == len(running.tokens))

    @rule(which=st.integers(0, 1))
    def finish_or_abort(self, which: int) -> None:
        if which < len(self.running):
            self.running.pop(which).end()

    @rule()
    def flush(self) -> None:
        if not self.running:
            super().flush()

    @rule()
    def running_requests_keep_their_state(self) -> None:
        for running in self.running:
            node = self.harness.node(running.node)
            if node.parent is not None:
                assert self.harness.cache.tree.holds_state(node)
                assert list(path_tokens(node)) == running.tokens[: running.depth]


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("policy", [1, 2])
def test_random_life(policy: int, core: str) -> None:
    options = {**AdmittedLife.options, "core": core}
    life = type("Life", (AdmittedLife,), {"policy": policy, "options": options})
    live(life, examples=120)
