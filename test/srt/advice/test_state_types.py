"""What other types of cached states would hit: their bytes, their share of memory, the answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sglang.srt.marconi_utils import cost_by_name
from sglang.srt.mem_cache.marconi.advice import command as product
from sglang.srt.mem_cache.marconi.advice.replay import POLICY_ROWS, advise, server_shape
from sglang.srt.mem_cache.marconi.advice.state_types import by_state_type, divided
from sglang.srt.mem_cache.marconi.costs.state_types import state_types
from sglang.srt.mem_cache.marconi.tuning.splits import resplit
from test_advise import MODEL, hashed, sessions, uneven

COST = cost_by_name(MODEL)
#: Qwen3-Next: 36 recurrent layers of 32 heads, 128 x 128 numbers each, and a convolution's window.
LAYERS, TEMPORAL, CONV = 36, 32 * 128 * 128, 3 * (2 * 16 * 128 + 32 * 128)
FLOAT32, BFLOAT16, INT8 = state_types(COST)


def shape():
    return server_shape(POLICY_ROWS["stock LRU"], 64)


def test_bytes_of_a_state_by_type():
    assert FLOAT32.bytes == LAYERS * (4 * TEMPORAL + 2 * CONV) == COST.state_bytes
    assert BFLOAT16.bytes == LAYERS * (2 * TEMPORAL + 2 * CONV)
    # A float32 scale for each of 32 heads and 128 key channels.
    assert INT8.bytes == LAYERS * (TEMPORAL + 4 * 32 * 128 + 2 * CONV)
    halved = COST.with_pool_bytes(COST.kv_bytes_per_token, BFLOAT16.bytes)
    assert INT8.bytes - state_types(halved)[2].bytes == LAYERS * 2 * 32 * 128
    assert state_types(replace(COST, layers=None)) == ()


def test_compressed_states_get_what_full_size_ones_of_a_running_request_leave():
    memory = 40 * COST.state_bytes
    full, half, compressed = (divided(shape(), COST, t, memory, 1.0) for t in state_types(COST))
    assert full == resplit(shape(), COST, memory, 1.0)
    assert (full.state_slots, full.working_states) == (20, 3)
    assert half.state_slots == 20 * FLOAT32.bytes // BFLOAT16.bytes
    assert compressed.state_slots == 17 * FLOAT32.bytes // INT8.bytes
    assert compressed.working_states == 0
    assert full.kv_blocks == half.kv_blocks == compressed.kv_blocks
    # Half of six states is what one running request works on.
    assert divided(shape(), COST, INT8, 6 * COST.state_bytes, 1.0) is None


def test_smaller_states_hit_more_where_states_are_short():
    requests, memory = hashed(sessions(30, 8)), 2 * 2**30
    options = {"block_tokens": 64, "ratios": (0.5, 0.9, 2.0)}
    best = advise(requests, COST, memory, rows=["policy 3 (value)"], **options).static
    types = by_state_type(requests, COST, memory, best, **options)
    assert [typed.held_as for typed in types] == ["float32", "bfloat16", "int8 checkpoint"]
    rates = [typed.option.token_hit_rate for typed in types]
    assert rates == sorted(rates) and rates[2] > rates[0] + 0.1
    own, _, compressed = types
    assert own.option == best and best.ratio == 0.9
    assert own.states == int(memory * 0.9 / 1.9 / COST.state_bytes) == 13
    assert compressed.flags.endswith(f"--int8-mamba-ckpt-size {compressed.states}")
    for typed in types[1:]:
        one = by_state_type(
            requests, COST, memory, best, block_tokens=64, ratios=[typed.option.ratio]
        )
        assert typed in one, "the best split of a type is one of those tried"


def test_the_rate_is_that_of_tokens():
    prompt = [list(range(10))] * 4
    advice = advise(hashed(prompt), COST, 20 * 2**30, block_tokens=64, ratios=[0.9])
    # A prompt's last block is always computed: the second request finds no state before it, and
    # leaves one where the third and fourth resume.
    assert advice.stock.token_hit_rate == pytest.approx(2 * 9 / 40)
    assert advice.stock.saved < advice.stock.token_hit_rate


def test_it_is_printed_and_in_the_json(capsys):
    parser = product.argparse.ArgumentParser()
    product.add_arguments(parser)
    words = ["--model", MODEL, "--memory-gib", "3", "--ratios", "0.9", "--policy"]
    options = parser.parse_args([*words, "policy 3 (value)"])
    requests = hashed(uneven(20, 200))
    lines = product.advised(options, requests, 64, COST).splitlines()
    assert lines[-5].startswith("policy 3 (value) in the same memory, by the type")
    assert [line.split()[0] for line in lines[-3:]] == ["float32*", "bfloat16", "int8"]
    options.json = True
    answer = json.loads(product.advised(options, requests, 64, COST))
    printed = [line.split()[-2:] for line in lines[-3:]]
    for typed, (rate, saved) in zip(answer["state_types"], printed, strict=True):
        assert f"{100 * typed['option']['token_hit_rate']:.1f}" == rate
        assert f"{100 * typed['option']['saved']:.1f}" == saved
    without = product.advised(options, requests, 64, replace(COST, layers=None))
    assert json.loads(without)["state_types"] == []
