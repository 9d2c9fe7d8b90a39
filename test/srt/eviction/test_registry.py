"""A policy is added by one registration, from outside, and is then known everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Container, Iterator

import pytest
from sglang.srt.marconi_utils import cost_by_name
from sglang.srt.mem_cache.marconi import arguments
from sglang.srt.mem_cache.marconi.config import FLAGS, MarconiConfig, MarconiConfigError
from sglang.srt.mem_cache.marconi.eviction.registry import (
    POLICIES,
    PolicyEntry,
    create_policy,
    register_policy,
)
from sglang.srt.mem_cache.marconi.eviction.savings import SurvivingSavings
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool
from tree_harness import TreeHarness, server_context


class LargestFirst:
    """Evicts the deepest prefix; what a stranger would write first."""

    pools = frozenset({Pool.STATE})

    def __init__(self) -> None:
        self.cached: dict[int, CachedPrefix] = {}

    def on_insert(self, prefix: CachedPrefix, now: int) -> None:
        self.cached[prefix.id] = prefix

    def on_hit(self, prefix: CachedPrefix, now: int) -> None: ...

    def on_change(self, prefix: CachedPrefix) -> None: ...

    def on_remove(self, prefix: CachedPrefix) -> None:
        del self.cached[prefix.id]

    def victim(self, pool: Pool, now: int, excluding: Container[int] = ()) -> CachedPrefix | None:
        may = [p for p in self.cached.values() if p.may_leave(pool) and p.id not in excluding]
        return max(may, key=lambda prefix: (prefix.depth, -prefix.order), default=None)


ENTRY = PolicyEntry(
    9,
    "largest",
    "the deepest prefix first",
    lambda options, savings, shared: LargestFirst(),
    options=frozenset({"marconi_evict_pools"}),
    needs_flops=False,
)


@pytest.fixture
def registered() -> Iterator[None]:
    register_policy(ENTRY)
    yield
    del POLICIES[9]


@pytest.mark.usefixtures("registered")
def test_flags_and_checks_know_it():
    parser = argparse.ArgumentParser()
    arguments.add_cli_args(parser)
    given = parser.parse_args(["--marconi-evict-policy", "9"])
    assert given.marconi_evict_policy == 9
    assert "9 is the deepest prefix first" in " ".join(parser.format_help().split())
    config = MarconiConfig.from_options({"marconi_evict_policy": "9"})
    assert config is not None and config.policy_name == "largest"
    assert not config.tunes and not config.leaves_kv_to_sglang
    state = {"marconi_evict_policy": 9, "marconi_evict_pools": "state"}
    assert MarconiConfig.from_options(state) is not None
    with pytest.raises(MarconiConfigError, match=r"--marconi-evict-policy is 9 \(largest\)"):
        MarconiConfig.from_options({"marconi_evict_policy": 9, "marconi_eff_weight": 1.0})


@pytest.mark.usefixtures("registered")
def test_it_chooses_the_victims_of_a_real_cache():
    with server_context():
        harness = TreeHarness(9, core="rust", kv_tokens=64, state_slots=6)
        for first, length in ((10, 3), (20, 9), (30, 5)):
            harness.insert(list(range(first, first + length)))
        harness.cache.evict_mamba(1)
        assert harness.states() == {(10, 11, 12), (30, 31, 32, 33, 34)}
        assert not harness.cache.stats.fallbacks
        harness.check()


@pytest.mark.parametrize("pools", [frozenset({"state"}), "state", [Pool.STATE, "kv"]])
@pytest.mark.usefixtures("registered")
def test_pools_by_another_name_are_refused(pools: object, monkeypatch: pytest.MonkeyPatch):
    config = MarconiConfig.from_options({"marconi_evict_policy": 9})
    assert config is not None
    savings = SurvivingSavings(cost_by_name("Qwen3-Next-80B-A3B-Instruct"))
    assert create_policy(config, savings).pools == {Pool.STATE}
    monkeypatch.setattr(LargestFirst, "pools", pools)
    with pytest.raises(ValueError, match=r"policy 9 \(largest\) orders the pool .*Pool\.STATE"):
        create_policy(config, savings)


def test_without_it_nothing_knows_it():
    with pytest.raises(MarconiConfigError, match="allowed are 1, 2, 3, auto"):
        MarconiConfig.from_options({"marconi_evict_policy": 9})
    (flag,) = (flag for flag in FLAGS if flag.field == "marconi_evict_pools")
    assert flag.policies == (2, 3)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (PolicyEntry(3, "other", "", ENTRY.make), r"beside 3 \(value\)"),
        (PolicyEntry(9, "lru", "", ENTRY.make), r"beside 1 \(lru\)"),
        (PolicyEntry(0, "other", "", ENTRY.make), "number >= 1"),
    ],
)
def test_a_number_or_name_that_is_taken_is_refused(entry: PolicyEntry, why: str):
    before = dict(POLICIES)
    with pytest.raises(ValueError, match=why):
        register_policy(entry)
    assert before == POLICIES
