"""Hints of a launch: what is said, when nothing is, and that its figures are the measured ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rows.store import read_rows
from rows.summary import with_summaries
from sglang.srt.mem_cache.marconi.advice.launch import (
    CELLS,
    ONE_MEMORY_LIMIT,
    SAVED_IN_ONE_MEMORY,
    SAVED_IN_TWO_POOLS,
    LaunchFacts,
    hints,
)

RESULTS = Path(__file__).resolve().parents[3] / "results"
NOTHING = LaunchFacts(policy=3, orders_kv=True)


def test_nothing_is_said_where_nothing_is_left():
    assert hints(NOTHING) == ()
    assert hints(replace(NOTHING, host_share=1.0)) == ()


def test_one_memory_is_named_with_its_figures_and_its_limit():
    (hint,) = hints(replace(NOTHING, could_share_memory=True))
    assert "--enable-unified-memory" in hint and ONE_MEMORY_LIMIT in hint
    assert f"saved {SAVED_IN_ONE_MEMORY:.1f} %" in hint
    assert f"two pools {SAVED_IN_TWO_POOLS:.1f} %" in hint and f"{CELLS} cells" in hint


@pytest.mark.parametrize("changed", [{"policy": 1}, {"policy": 2}, {"orders_kv": False}])
def test_figures_of_policy_3_over_both_pools_are_given_to_no_other(changed):
    assert hints(replace(NOTHING, could_share_memory=True, **changed)) == ()


def test_the_figures_are_the_measured_ones():
    rows = with_summaries(read_rows(RESULTS))
    for policy, figure in (
        ("policy-3", SAVED_IN_TWO_POOLS),
        ("policy-3-one-memory", SAVED_IN_ONE_MEMORY),
    ):
        assert f"{rows.number(f'summary/{policy}', 'mean'):.1f}" == f"{figure:.1f}"
        assert rows.number(f"summary/{policy}", "cells") == CELLS


def test_both_weights_of_a_state_are_named_and_no_accuracy_is_promised():
    (hint,) = hints(replace(NOTHING, policy=1, state_bytes=(77_279_232, 39_530_496)))
    assert "73.7 MiB" in hint and "37.7 MiB" in hint and "1.95 times" in hint
    assert "--mamba-ssm-dtype bfloat16" in hint and "can change answers" in hint


@pytest.mark.parametrize(("share", "words"), [(0.5, "0.50 bytes"), (0.9999, "0.99 bytes")])
def test_a_small_host_tier_is_named_with_its_share(share, words):
    (hint,) = hints(replace(NOTHING, host_share=share))
    assert words in hint and "--hicache-ratio" in hint
