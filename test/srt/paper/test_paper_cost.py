"""The paper's costs, by number and beside the product's own formulas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paper import AS_PUBLISHED, CORRECTED, Fixes, PaperModel
from sglang.srt.marconi_utils import PAPER_7B, SeedCost

MODEL = PaperModel()
LENGTHS = st.integers(0, 40_000)


def test_the_defaults_are_the_papers_7b():
    assert MODEL.state_bytes == 26_787_840 == PAPER_7B.state_memory()
    assert MODEL.kv_bytes_per_token == 65_536
    assert MODEL.state_bytes // 24 == 1_116_160


@given(LENGTHS)
def test_flops_follow_the_specification(l):  # noqa: E741
    d, n = 4096, 128
    assert MODEL.ssm_flops(l) == 24 * (12 * l * d**2 + 16 * l * d * n + 10 * l * d)
    assert MODEL.attn_flops(l) == 4 * (8 * l * d**2 + 4 * l**2 * d)
    assert MODEL.mlp_flops(l) == 28 * 16 * l * d**2


@given(LENGTHS, LENGTHS, st.sampled_from([(24, 4, 28, 4096, 128), (3, 2, 5, 64, 16)]))
def test_corrected_savings_are_the_products_own(a, b, sizes):
    model, seed = PaperModel(*sizes), SeedCost(*sizes)
    parent, path = min(a, b), max(a, b)
    assert model.saved_flops(parent, path, CORRECTED) == seed.flops_savings(parent, path)
    assert model.prefill_flops(path) == seed.flops_savings(0, path)
    assert model.node_bytes(path) == seed.total_memory(path)


@given(LENGTHS, LENGTHS)
def test_the_published_mlp_term_adds_a_bonus_below_8192_tokens(a, b):
    parent, path = min(a, b), max(a, b)
    bonus = MODEL.saved_flops(parent, path, AS_PUBLISHED)
    bonus -= MODEL.saved_flops(parent, path, CORRECTED)
    assert bonus == 112 * parent * 4096 * (2 * 4096 - parent)


def test_published_savings_can_be_negative():
    assert MODEL.saved_flops(20_000, 20_001, AS_PUBLISHED) < 0
    assert MODEL.saved_flops(20_000, 20_001, CORRECTED) > 0


@pytest.mark.parametrize("whole_path", [True, False])
def test_efficiency_charges_the_path_or_the_segment(whole_path):
    fixes = Fixes(memory_of_segment=not whole_path)
    tokens = 1500 if whole_path else 500
    expected = MODEL.saved_flops(1000, 1500, fixes) / (26_787_840 + 65_536 * tokens)
    assert MODEL.efficiency(1000, 1500, fixes) == expected
