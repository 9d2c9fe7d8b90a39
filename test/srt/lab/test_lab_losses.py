"""Lost tokens of the lab against a brute-force twin that remembers whole prefixes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from lab.losses import LossLedger, chain_hashes
from sglang.srt.mem_cache.marconi.advice.load.served import Loss

blocks = st.lists(st.integers(0, 2), max_size=6)


@given(st.lists(st.tuples(blocks, st.integers(0, 6), st.integers(0, 6), st.integers(0, 6))))
def test_every_lost_block_has_the_reason_that_a_memory_of_all_prefixes_gives(history):
    ledger = LossLedger()
    seen: set[tuple[int, ...]] = set()
    states: set[tuple[int, ...]] = set()
    for ids, hit, alive, state_at in history:
        deepest_seen = max((k for k in range(len(ids) + 1) if tuple(ids[:k]) in seen), default=0)
        hit = min(hit, deepest_seen)
        alive = max(hit, min(alive, deepest_seen))
        deepest_state = max(
            (k for k in range(hit, len(ids) + 1) if tuple(ids[:k]) in states), default=hit
        )
        expected = {"state_evicted": 0, "kv_evicted": 0, "never_admitted": 0}
        for depth in range(hit + 1, deepest_seen + 1):
            if depth > deepest_state:
                expected["never_admitted"] += 1
            elif deepest_state <= alive:
                expected["state_evicted"] += 1
            else:
                expected["kv_evicted"] += 1
        chain = chain_hashes(ids)
        assert ledger.look_up(chain, hit, alive) == Loss(**expected)
        ledger.computed(chain)
        seen.update(tuple(ids[: k + 1]) for k in range(len(ids)))
        if 0 < state_at <= len(ids):
            ledger.admitted(chain[state_at - 1])
            states.add(tuple(ids[:state_at]))


@given(blocks, blocks)
def test_chains_are_equal_exactly_where_prefixes_are(one, other):
    for k, (a, b) in enumerate(zip(chain_hashes(one), chain_hashes(other), strict=False), 1):
        assert (a == b) == (one[:k] == other[:k])
