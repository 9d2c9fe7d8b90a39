"""Admission's pure decisions: where prefill is cut, which states stay, what follow-ups teach."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.mem_cache.marconi.admission.follow_ups import FollowUps
from sglang.srt.mem_cache.marconi.admission.rules import (
    ADMISSIONS,
    FOLLOW_UPS,
    PROMPT_END_SHARE,
    Chunk,
    JudiciousAdmission,
    OwnState,
    SGLangAdmission,
    boundaries,
    forwards,
    lies_at,
)

JUDICIOUS, SGLANG = JudiciousAdmission(), SGLangAdmission()


@st.composite
def prefills(draw) -> tuple[Chunk, int, list[int]]:
    """A whole prefill, a chunk size and stops, as a server could meet them."""
    grid = draw(st.sampled_from([1, 4, 64]))
    start = draw(st.integers(0, 6 * grid))
    end = start + draw(st.integers(1, 20 * grid))
    branch = draw(st.none() | st.integers(start // grid + 1, max(end // grid, start // grid + 1)))
    stops = draw(st.lists(st.integers(1, end), max_size=3))
    snapshots = grid > 1 or draw(st.booleans())
    chunk = Chunk(start, end, end, grid, snapshots, None if branch is None else branch * grid)
    return chunk, draw(st.integers(1, 12 * grid)), stops


def states(admission, prompt: Chunk, chunk_tokens: int, stops: list[int]) -> list[int]:
    return [
        chunk.state_depth
        for chunk in forwards(admission, prompt, chunk_tokens, stops)
        if chunk.state_depth is not None
    ]


@given(prefills())
def test_every_token_is_computed_once_and_no_forward_exceeds_its_chunk(prefill):
    prompt, chunk_tokens, stops = prefill
    for admission in (JUDICIOUS, SGLANG):
        at = prompt.start
        for chunk in forwards(admission, prompt, chunk_tokens, stops):
            assert chunk.start == at and 0 < chunk.end - chunk.start <= chunk_tokens
            depth = chunk.state_depth
            assert depth is None or chunk.start < depth <= chunk.end
            at = chunk.end
        assert at == prompt.end


@given(prefills())
def test_sglang_admission_only_chunks(prefill):
    prompt, chunk_tokens, stops = prefill
    ends = [chunk.end for chunk in forwards(SGLANG, prompt, chunk_tokens, stops)]
    assert ends == [*range(prompt.start + chunk_tokens, prompt.end, chunk_tokens), prompt.end]


@given(prefills())
def test_each_cut_costs_one_forward_for_a_state_that_is_wanted(prefill):
    prompt, chunk_tokens, stops = prefill
    wanted = {*stops, prompt.branch}
    cuts = 0
    for chunk in forwards(JUDICIOUS, prompt, chunk_tokens, stops):
        if chunk.end < min(chunk.start + chunk_tokens, prompt.end):
            cuts += 1
            assert chunk.end in wanted and lies_at(chunk.state_depth, [chunk.end], prompt.grid)
    assert cuts <= len(wanted)


@given(prefills())
def test_without_snapshots_a_state_lies_at_every_stop(prefill):
    prompt, chunk_tokens, stops = prefill
    prompt = Chunk(prompt.start, prompt.end, prompt.end, 1, False, prompt.branch)
    depths = states(JUDICIOUS, prompt, chunk_tokens, stops)
    wanted = [*stops] if prompt.branch is None else [*stops, prompt.branch]
    for stop in wanted:
        assert not prompt.start < stop <= prompt.end or stop in depths
    assert depths[-1] == prompt.end


@pytest.mark.parametrize(
    ("branch", "chunk", "expected", "stock"),
    [
        (None, 256, [256, 512, 640], [256, 512, 640]),
        (128, 256, [128, 512, 640], [128, 512, 640]),
        (576, 256, [256, 512, 576, 640], [256, 512, 576]),
        (192, 8192, [192, 640], [192]),
        (640, 8192, [640], [640]),
    ],
    ids=["no_branch", "in_a_middle_chunk", "in_the_last_chunk", "unchunked", "at_the_end"],
)
def test_a_branch_point_and_the_end_of_the_prompt_both_leave_a_state(
    branch, chunk, expected, stock
):
    """Cut only in the last chunk: the end of another is taken back anyway."""
    prompt = Chunk(0, 700, 700, 64, True, branch)
    assert states(JUDICIOUS, prompt, chunk, []) == expected
    assert states(SGLANG, prompt, chunk, []) == stock


def test_a_branch_point_off_the_grid_of_the_resumed_depth_is_cut_just_above():
    prompt = Chunk(100, 700, 700, 64, True, 192)
    assert states(SGLANG, prompt, 8192, []) == [676], "SGLang leaves the branch point out"
    depths = states(JUDICIOUS, prompt, 8192, [])
    assert depths == [164, 640] and lies_at(164, [192], 64)


def test_no_cut_for_less_than_a_grid_step():
    assert JUDICIOUS.cut(Chunk(0, 150, 150, 64, True, 128)) is None
    assert JUDICIOUS.cut(Chunk(100, 700, 700, 64, True, 128)) is None
    assert JUDICIOUS.cut(Chunk(0, 150, 150, 1, False, 128)) == 128


def test_what_stays():
    assert JUDICIOUS.takes_back(OwnState(8192))
    assert not JUDICIOUS.takes_back(OwnState(8192, at_stop=True))
    assert not JUDICIOUS.takes_back(OwnState(8192, reused=True))
    assert not JUDICIOUS.takes_back(OwnState(8192, children=2))
    assert not SGLANG.takes_back(OwnState(8192))
    assert {name: kind.name for name, kind in ADMISSIONS.items()} == {
        name: name for name in ADMISSIONS
    }


@given(st.lists(st.integers(0, 2)), st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3)))
def test_boundaries_are_the_first_occurrences(tokens, sequences):
    expected = set()
    for sequence in sequences:
        places = range(len(tokens))
        first = [at for at in places if tokens[at : at + len(sequence)] == sequence][:1]
        expected.update(first)
    assert boundaries(array("q", tokens), sequences) == tuple(sorted(expected - {0}))


# -- ends of prompts

END = OwnState(640, prompt_end=True)


def test_ends_of_prompts_are_taken_back_until_conversations_go_on_from_them():
    admission = JudiciousAdmission()
    assert admission.takes_back(END)
    admission.went_on(from_output=False)
    assert not admission.takes_back(END) and admission.takes_back(OwnState(640))
    for _ in range(FOLLOW_UPS * 5):
        admission.went_on(from_output=True)
    assert admission.takes_back(END)
    for _ in range(FOLLOW_UPS // 2):
        admission.went_on(from_output=False)
    assert not admission.takes_back(END), "the workload changed"


@given(st.lists(st.booleans(), max_size=FOLLOW_UPS))
def test_the_first_follow_ups_count_alike(from_output):
    admission = JudiciousAdmission()
    for each in from_output:
        admission.went_on(from_output=each)
    share = from_output.count(False) / max(len(from_output), 1)
    if abs(share - PROMPT_END_SHARE) > 1e-6:
        assert admission.takes_back(END) == (share < PROMPT_END_SHARE)


class Heard(SGLangAdmission):
    def __init__(self) -> None:
        self.follow_ups: list[bool] = []

    def went_on(self, *, from_output: bool) -> None:
        self.follow_ups.append(from_output)


NODES = st.integers(0, 5)
EVENTS = st.one_of(
    st.tuples(st.just("watch"), st.tuples(NODES, NODES).filter(lambda pair: pair[0] != pair[1])),
    st.tuples(st.sampled_from(["seen", "parted", "forget"]), NODES.map(lambda node: (node,))),
)


@given(st.lists(EVENTS, max_size=40))
def test_each_finished_request_is_followed_up_at_most_once(events):
    """Against a plain list of (end of prompt, end of output)."""
    heard, twin, pairs = Heard(), [], []
    follow_ups = FollowUps(heard)
    for event, nodes in events:
        getattr(follow_ups, event)(*nodes)
        touched = [pair for pair in pairs if set(pair) & set(nodes)]
        if event == "seen":
            twin += [pair[1] == nodes[0] for pair in touched]
        elif event == "parted":
            touched = [pair for pair in touched if pair[1] == nodes[0]]
            twin += [False] * len(touched)
        pairs = [pair for pair in pairs if pair not in touched]
        if event == "watch":
            pairs.append(nodes)
        assert heard.follow_ups == twin
