"""The faster key does in every respect what SGLang's does."""

from __future__ import annotations

from array import array

import pytest
import tree_harness  # noqa: F401, hides the GPU before SGLang is imported
from hypothesis import example, given
from hypothesis import strategies as st
from sglang.srt.mem_cache.mamba_radix.python_core.key import PlainKey, plain_key
from sglang.srt.mem_cache.radix_cache import RadixKey

TOKENS = st.lists(st.integers(0, 1), max_size=12)
KEYS = st.builds(
    RadixKey,
    TOKENS.map(lambda tokens: array("q", tokens)),
    extra_key=st.none() | st.just("lora"),
    limit=st.none() | st.integers(0, 14),
    cache_salt=st.none() | st.just("salt"),
)
ENDS = st.none() | st.integers(-13, 13)


def described(key: RadixKey) -> tuple[object, ...]:
    tokens = list(key.raw_token_ids())
    return tokens, list(key), len(key), key.extra_key, key.cache_salt, key.is_bigram


def outcome(call, *arguments, **keywords):
    try:
        return call(*arguments, **keywords)
    except (ValueError, IndexError) as error:
        return type(error), str(error)


@given(KEYS, ENDS, ENDS)
def test_parts_are_those_of_the_original(key, start, stop):
    fast = plain_key(key)
    assert type(fast) is PlainKey
    assert described(fast) == described(key)
    part = fast[start:stop]
    assert type(part) is PlainKey
    assert described(part) == described(key[start:stop])
    assert described(fast.page_aligned(4)) == described(key.page_aligned(4))


@given(KEYS, KEYS, st.integers(-1, 13), st.sampled_from([1, 1, 2, 4]))
@example(RadixKey(array("q")), RadixKey(array("q")), -1, 1)
def test_matches_are_those_of_the_original(mine, other, offset, page_size):
    expected = outcome(mine.match_at, other, offset, page_size=page_size)
    for first in (mine, plain_key(mine)):
        for second in (other, plain_key(other)):
            assert outcome(first.match_at, second, offset, page_size=page_size) == expected
    assert outcome(plain_key(mine).child_key_at, offset, page_size) == outcome(
        mine.child_key_at, offset, page_size
    )


@given(TOKENS, TOKENS, st.integers(0, 6))
def test_a_whole_node_matches(node, rest, offset):
    before = [7] * offset
    key = plain_key(RadixKey(array("q", before + node + rest)))
    assert plain_key(RadixKey(array("q", node))).match_at(key, offset) == len(node)


def test_a_key_of_bigrams_stays_as_it_is():
    key = RadixKey(array("q", [1, 2, 3]), is_bigram=True)
    assert plain_key(key) is key
    fast = plain_key(RadixKey(array("q", [1, 2])))
    assert plain_key(fast) is fast
    with pytest.raises(IndexError):
        fast[2]
