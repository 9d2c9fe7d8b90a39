"""Under ``write_back`` the policy says which states the host gets a copy of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from test_host_order import CORES, hosted, leave_device, resumes_at
from test_host_tier import random_life
from tree_harness import TreeHarness, sequence, server_context


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with server_context():
        yield


def evict_state(harness: TreeHarness) -> None:
    harness.cache.evict(EvictParams(num_tokens=0, mamba_num=1))


@pytest.mark.parametrize("core", CORES)
def test_a_superseded_state_is_not_copied_and_the_tail_is(core: str):
    copied = {}
    for policy in (1, 3):
        harness, tier = hosted(policy, core, "write_back")
        harness.insert(sequence(10, 1))
        harness.insert(sequence(20, 1))
        evict_state(harness)
        copied[policy] = tier.used()
        assert harness.cache.stats.backups_skipped == (policy == 3)
    assert copied == {1: (10, 1), 3: (0, 0)}
    leave_device(harness, tier)
    # The KV above the tail's is the tail's too.
    assert tier.used() == (20, 1)
    assert harness.cache.stats.backups_skipped == 1
    assert resumes_at(harness, sequence(20, 1)) == 20
    assert resumes_at(harness, sequence(10, 1)) == 0
    harness.check()


@pytest.mark.parametrize("core", CORES)
def test_what_leads_to_something_on_the_host_is_copied_whatever_its_odds(core: str):
    harness, tier = hosted(core=core, write_policy="write_back")
    harness.insert(sequence(10, 1))
    harness.insert(sequence(20, 1))
    assert harness.cache.evict(EvictParams(num_tokens=10)).num_tokens_evicted == 10
    harness.cache.policy.odds.ever = lambda kind, level: 0.0
    leave_device(harness, tier)
    assert harness.cache.stats.backups_skipped == 0
    assert resumes_at(harness, sequence(20, 1)) == 20


@pytest.mark.parametrize("core", CORES)
def test_what_storage_would_get_is_copied(core: str):
    """Another server may resume at it."""
    harness, tier = hosted(core=core, write_policy="write_back")
    harness.insert(sequence(10, 1))
    harness.insert(sequence(20, 1))
    stored: list[int] = []
    harness.cache.enable_storage, harness.cache.write_backup_storage = True, stored.append
    evict_state(harness)
    assert tier.used() == (10, 1)
    assert stored == [harness.look(sequence(10, 1)).best_match_node]
    assert harness.cache.stats.backups_skipped == 0


@pytest.mark.parametrize("core", CORES)
def test_an_error_copies_as_sglang_does_and_is_counted(core: str, caplog: pytest.LogCaptureFixture):
    harness, tier = hosted(core=core, write_policy="write_back")
    harness.insert(sequence(10, 1))
    harness.insert(sequence(20, 1))
    harness.cache.policy.is_worth_backup = lambda prefix: 1 / 0
    evict_state(harness)
    assert tier.used() == (10, 1)
    leave_device(harness, tier)
    assert tier.used()[0] == 20
    assert harness.cache.stats.errors > 0 and not harness.cache.stats.fallbacks
    assert harness.cache.stats.backups_skipped == 0
    said = "weighing a backup failed, the copy is made, as SGLang would; counted"
    assert caplog.text.count(said) == 1 and "LRU" not in caplog.text


@pytest.mark.parametrize("core", CORES)
def test_write_through_copies_all(core: str):
    harness, tier = hosted(core=core, write_policy="write_through")
    harness.cache.policy.is_worth_backup = lambda prefix: 1 / 0
    for seed in range(5):
        random_life(harness, tier, seed, 40)
    assert harness.cache.stats.errors == 0
    assert tier.written.states > 10
