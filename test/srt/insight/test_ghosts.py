"""The memory of evicted prefixes against a plain set of token sequences."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.mem_cache.marconi.insight import ghosts as module
from sglang.srt.mem_cache.marconi.insight.ghosts import Ghosts, extend, root_digest
from sglang.srt.mem_cache.marconi.tree import NO_NAMESPACE

TOKENS = st.lists(st.integers(0, 1), max_size=12)


@pytest.fixture(autouse=True)
def blocks_of_3(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_TOKENS", 3)


@given(TOKENS, TOKENS)
def test_a_digest_does_not_depend_on_how_tokens_arrive(first, second):
    at_once, _ = extend(root_digest(NO_NAMESPACE), first + second)
    halfway, _ = extend(root_digest(NO_NAMESPACE), first)
    in_two, _ = extend(halfway, second)
    assert at_once == in_two
    assert at_once.length == len(first) + len(second)


def test_namespaces_are_apart():
    assert (
        extend(root_digest(("a", None)), [1, 2, 3])[0]
        != extend(root_digest((None, "a")), [1, 2, 3])[0]
    )


@settings(max_examples=300)
@given(
    st.lists(st.tuples(TOKENS, st.integers(0, 12), st.booleans()), max_size=6),
    TOKENS,
    st.integers(0, 12),
)
def test_look_up_finds_what_a_set_of_sequences_finds(evicted, query, alive_length):
    ghosts = Ghosts()
    states, blocks = set(), set()
    for tokens, cut, had_state in evicted:
        cut = min(cut, len(tokens))
        parent, _ = extend(root_digest(NO_NAMESPACE), tokens[:cut])
        ghosts.add(parent, tokens[cut:], had_state)
        if had_state:
            states.add(tuple(tokens))
        for end in range(3, len(tokens) + 1, 3):
            if end > cut - cut % 3:
                blocks.add(tuple(tokens[:end]))
    alive_length = min(alive_length, len(query))
    alive, _ = extend(root_digest(NO_NAMESPACE), query[:alive_length])
    found = ghosts.look_up(alive, query[alive_length:])
    start = alive_length - alive_length % 3
    if not ghosts.may_lead_on(start // 3, query[start : start + 3]):
        assert (found.state_depth, found.kv_depth) == (0, 0)

    reach = alive_length - alive_length % 3
    while reach + 3 <= len(query) and tuple(query[: reach + 3]) in blocks:
        reach += 3
    deepest = max(
        (
            len(s)
            for s in states
            if alive_length < len(s) <= min(reach + 2, len(query)) and tuple(query[: len(s)]) == s
        ),
        default=0,
    )
    assert found.state_depth == deepest
    kv = reach if reach > alive_length - alive_length % 3 else 0
    assert found.kv_depth == max(kv, deepest)


def test_what_is_forgotten_or_never_was_cannot_lead_on():
    ghosts = Ghosts(max_blocks=3)
    ghosts.add(root_digest(NO_NAMESPACE), [1, 2, 3, 4, 5], True)
    assert ghosts.may_lead_on(0, [1, 2, 3])
    assert ghosts.may_lead_on(1, [4, 5, 6])
    assert not ghosts.may_lead_on(0, [1, 2, 4])
    assert not ghosts.may_lead_on(2, [4, 5, 6])
    for first in range(10, 13):
        ghosts.add(root_digest(NO_NAMESPACE), [first] * 3, False)
    assert not ghosts.may_lead_on(0, [1, 2, 3])
    assert not ghosts.may_lead_on(1, [4, 5, 6])
    assert ghosts.may_lead_on(0, [12] * 3)


def test_memory_is_bounded_and_the_oldest_goes_first():
    ghosts = Ghosts(max_blocks=4)
    for first in range(4):
        ghosts.add(root_digest(NO_NAMESPACE), [first] * 6, True)
    assert len(ghosts) == 4
    assert ghosts.look_up(root_digest(NO_NAMESPACE), [0] * 6).state_depth == 0
    assert ghosts.look_up(root_digest(NO_NAMESPACE), [3] * 6).state_depth == 6
    ghosts.clear()
    assert len(ghosts) == 0
    with pytest.raises(ValueError, match="max_blocks"):
        Ghosts(max_blocks=0)


def test_who_owned_a_forgotten_state_is_told_once():
    told: list[int] = []
    ghosts, root = Ghosts(max_blocks=2, on_forgotten=told.append), root_digest(NO_NAMESPACE)
    for owner in range(3):
        ghosts.add(root, [owner] * 3, True, owner)
    assert told == [0]
    ghosts.add(root, [2] * 3, True, 2)
    assert told == [0]


def test_a_look_up_does_not_go_through_all_tails_of_a_chain():
    class Unlisted(dict):
        def __iter__(self):
            raise AssertionError("every tail was looked at")

        keys = items = __iter__

    ghosts, root = Ghosts(), root_digest(NO_NAMESPACE)
    for token in range(100):
        ghosts.add(root, [7, token], had_state=True, owner=token)
    (block,) = ghosts._blocks.values()
    block.state_tails = Unlisted(block.state_tails)
    assert ghosts.look_up(root, [7, 42, 1]) == (2, 2, 42)


def test_ends_within_one_block_are_bounded_and_the_oldest_goes_first(monkeypatch):
    """Prompts that are shorter than a block all end in the first, which is never the oldest."""
    monkeypatch.setattr(module, "MOST_TAILS", 10)
    forgotten: list[int] = []
    ghosts, root = Ghosts(on_forgotten=forgotten.append), root_digest(NO_NAMESPACE)
    for owner in range(100):
        ghosts.add(root, [owner], had_state=True, owner=owner)
        ghosts.add(root, [0], had_state=True, owner=1000)
    assert forgotten == list(range(1, 91))
    assert ghosts.look_up(root, [0]) == (1, 1, 1000)
    assert ghosts.look_up(root, [95]) == (1, 1, 95)
    assert ghosts.look_up(root, [50]) == (0, 0, 0)
    assert not ghosts.may_lead_on(0, [50]) and ghosts.may_lead_on(0, [95])
