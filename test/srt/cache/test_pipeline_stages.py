"""Pipeline stages hold different layers, price prefixes alike, and choose the same victims."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tree_harness import COST, TreeHarness, random_life, server_context

#: KV bytes a token and bytes a state on two uneven stages: 3 and 4 of 7 attention layers.
STAGES = ((12, 1600), (16, 900))
POLICIES = {
    "policy 1": (1, {}),
    "policy 2": (2, {"marconi_eff_weight": 0.5}),
    "policy 2, state pool": (2, {"marconi_eff_weight": 0.5, "marconi_evict_pools": "state"}),
    "policy 3": (3, {}),
}

STAGE = """
import sys
import torch.distributed as dist
from sglang.srt.marconi_utils import PoolBytes
from sglang.srt.mem_cache.mamba_radix.setup import bytes_of_all_stages

rank, store, kv, state = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
print(*bytes_of_all_stages(PoolBytes(kv, state), dist.group.WORLD))
"""


def digest(policy: int, options: dict[str, object], prices: tuple[int, int], seed: int) -> str:
    kv, state = prices
    cost = replace(COST, kv_bytes_per_token=kv, state_bytes=state)
    harness = TreeHarness(policy, core="rust", cost=cost, kv_tokens=400, state_slots=14, **options)
    random_life(harness, seed, 300)
    return harness.cache.stats.victim_digest.hex()


@pytest.fixture(scope="module")
def agreed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, int]]:
    """What each of two processes with pools of its own takes for the bytes of a prefix."""
    store = tmp_path_factory.mktemp("stages") / "store"
    stages = [
        subprocess.Popen(
            [sys.executable, "-c", STAGE, str(rank), str(store), *map(str, own)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, own in enumerate(STAGES)
    ]
    printed = [stage.communicate(timeout=300)[0].split()[-2:] for stage in stages]
    return [(int(kv), int(state)) for kv, state in printed]


def test_two_processes_agree_on_the_bytes_of_both(agreed: list[tuple[int, int]]):
    assert agreed == [(28, 2500)] * 2


@pytest.mark.parametrize("name", POLICIES)
def test_no_life_differs_between_stages_that_agreed(name: str, agreed: list[tuple[int, int]]):
    """100 lives over all policies; with its own bytes a stage would differ."""
    policy, options = POLICIES[name]

    def differ(prices: Sequence[tuple[int, int]], seed: int) -> bool:
        return len({digest(policy, options, price, seed) for price in prices}) > 1

    with server_context():
        assert not any(differ(agreed, seed) for seed in range(25))
        assert any(differ(STAGES, seed) for seed in range(3)) == (policy != 1)
