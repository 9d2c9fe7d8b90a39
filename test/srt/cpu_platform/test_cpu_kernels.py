"""The reference kernels against the recurrences that define them, one token after another."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sglang_cpu_reference")
import sglang_cpu_reference
from sglang_cpu_reference import attention, conv, experts, gated_delta, layers, ssd, state_copy
from sglang_cpu_reference.chunks import ChunkPlan
from sglang_cpu_reference.patching import IncompatibleSGLang, Replacement, apply
from sglang_cpu_reference.threads import parse_cpus

# Two orders of fp32 summation over up to some hundred tokens.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}
POOL_SLOTS = 9
LENGTHS = (
    (1,),
    (64,),
    (65, 3),
    (128, 1, 63),
    (200, 64, 17, 130),
    (5, 0, 70),
)


@pytest.fixture(params=range(3), ids=lambda seed: f"seed{seed}")
def random(request: pytest.FixtureRequest) -> Iterator[torch.Generator]:
    yield torch.Generator().manual_seed(request.param)


def normal(random: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=random)


def packed_offsets(lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def spans(lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    ends = list(accumulate(lengths))
    return list(zip([0, *ends], ends, strict=False))


def some_slots(random: torch.Generator, count: int) -> torch.Tensor:
    """Different slots in no order, never the padding slot 0."""
    return torch.randperm(POOL_SLOTS - 1, generator=random)[:count].int() + 1


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (1, 3), (2, 4)], ids=str)
def test_gated_delta_prefill_equals_recurrence(
    random: torch.Generator, lengths: tuple[int, ...], heads: tuple[int, int]
) -> None:
    key_heads, value_heads = heads
    key_width, value_width, total = 16, 24, sum(lengths)
    q, k = (normal(random, 1, total, key_heads, key_width) for _ in range(2))
    v = normal(random, 1, total, value_heads, value_width)
    a, b = (normal(random, total, value_heads) for _ in range(2))
    A_log, dt_bias = normal(random, value_heads), normal(random, value_heads)
    g, beta = gated_delta.gates(A_log, a, b, dt_bias)
    pool = normal(random, POOL_SLOTS, value_heads, value_width, key_width)
    before, slots = pool.clone(), some_slots(random, len(lengths))

    out, none, states = gated_delta.prefill(
        q, k, v, g, beta, pool, packed_offsets(lengths), False, True, slots
    )

    assert none is None and out.dtype == v.dtype
    chunk = 0
    for (first, last), slot in zip(spans(lengths), slots.tolist(), strict=True):
        if first == last:
            assert torch.equal(pool[slot], before[slot])
            continue
        wanted, after = gated_delta.recurrent(
            gated_delta.l2_normalize(q[0, first:last]) * key_width**-0.5,
            gated_delta.l2_normalize(k[0, first:last]),
            v[0, first:last],
            g[0, first:last],
            beta[0, first:last],
            before[slot],
        )
        torch.testing.assert_close(out[0, first:last], wanted, **TOLERANCE)
        torch.testing.assert_close(pool[slot], after[-1], **TOLERANCE)
        for start in range(0, last - first, gated_delta.CHUNK_SIZE):
            snapshot = before[slot] if start == 0 else after[start - 1]
            torch.testing.assert_close(states[0, chunk], snapshot, **TOLERANCE)
            chunk += 1
    assert chunk == states.shape[1]
    untouched = sorted(set(range(POOL_SLOTS)) - set(slots.tolist()))
    assert torch.equal(pool[untouched], before[untouched])


def test_gated_delta_prefill_survives_strong_decay(random: torch.Generator) -> None:
    """exp(-G) would overflow fp32 within one chunk; the chunked form must not need it."""
    total = 130
    q, k = (normal(random, 1, total, 1, 8) for _ in range(2))
    v = normal(random, 1, total, 1, 8)
    g = torch.full((1, total, 1), -30.0)
    beta = torch.rand((1, total, 1), generator=random)
    pool = normal(random, 2, 1, 8, 8)
    slots = torch.tensor([1], dtype=torch.int32)
    out, _, states = gated_delta.prefill(
        q, k, v, g, beta, pool, torch.tensor([0, total]), False, True, slots
    )
    assert torch.isfinite(out).all() and torch.isfinite(states).all()


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("heads", [(2, 2), (2, 4)], ids=str)
def test_gated_delta_decode_equals_recurrence(
    random: torch.Generator, batch: int, heads: tuple[int, int]
) -> None:
    key_heads, value_heads = heads
    q, k = (normal(random, 1, batch, key_heads, 16) for _ in range(2))
    v = normal(random, 1, batch, value_heads, 24)
    a, b = (normal(random, batch, value_heads) for _ in range(2))
    A_log, dt_bias = normal(random, value_heads), normal(random, value_heads)
    pool = normal(random, POOL_SLOTS, value_heads, 24, 16)
    before, slots = pool.clone(), some_slots(random, batch)
    g, beta = gated_delta.gates(A_log, a, b, dt_bias)

    out = gated_delta.decode(A_log, dt_bias, q, k, v, a, b, pool, slots, packed_offsets(()), True)

    for row, slot in enumerate(slots.tolist()):
        wanted, after = gated_delta.recurrent(
            gated_delta.l2_normalize(q[0, row : row + 1]) * 16**-0.5,
            gated_delta.l2_normalize(k[0, row : row + 1]),
            v[0, row : row + 1],
            g[0, row : row + 1],
            beta[0, row : row + 1],
            before[slot],
        )
        torch.testing.assert_close(out[0, row : row + 1], wanted, **TOLERANCE)
        torch.testing.assert_close(pool[slot], after[-1], **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_results_have_the_dtype_of_the_input(random: torch.Generator, dtype: torch.dtype) -> None:
    q, k, v = (normal(random, 1, 70, 2, 8).to(dtype) for _ in range(3))
    g, beta = gated_delta.gates(
        torch.zeros(2), normal(random, 70, 2).to(dtype), normal(random, 70, 2).to(dtype),
        torch.zeros(2, dtype=dtype),
    )  # fmt: skip
    slot, offsets = torch.tensor([1], dtype=torch.int32), torch.tensor([0, 70])
    for pool_dtype in (torch.float32, torch.bfloat16):
        pool = torch.zeros(2, 2, 8, 8, dtype=pool_dtype)
        out, _, _ = gated_delta.prefill(q, k, v, g, beta, pool, offsets, False, True, slot)
        assert out.dtype == dtype and pool.dtype == pool_dtype and pool[1].abs().sum() > 0
    window = torch.zeros(2, 16, 3, dtype=torch.bfloat16)
    x, taps = normal(random, 70, 16).to(dtype), normal(random, 16, 4).to(dtype)
    mixed = conv.causal_conv1d_fn(x.t(), taps, None, "silu", window, None, slot, offsets)
    assert mixed.dtype == dtype and window.dtype == torch.bfloat16


def naive_convolution(
    x: torch.Tensor, before: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """x [D, T], before [D, W-1], weight [D, W]; torch's own convolution."""
    inputs = torch.cat([before, x], dim=1).unsqueeze(0)
    return F.silu(F.conv1d(inputs, weight.unsqueeze(1), bias, groups=x.shape[0])[0])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_convolution_prefill(
    random: torch.Generator, lengths: tuple[int, ...], with_bias: bool
) -> None:
    channels, width, total = 10, 4, sum(lengths)
    x, weight = normal(random, channels, total), normal(random, channels, width)
    bias = normal(random, channels) if with_bias else None
    pool = normal(random, POOL_SLOTS, channels, width - 1)
    before, slots = pool.clone(), some_slots(random, len(lengths))
    known = torch.rand(len(lengths), generator=random) < 0.5

    out = conv.causal_conv1d_fn(
        x, weight, bias, "silu", pool, known, slots, packed_offsets(lengths), list(lengths)
    )

    for row, ((first, last), slot) in enumerate(zip(spans(lengths), slots.tolist(), strict=True)):
        window = before[slot] * known[row]
        if last > first:
            wanted = naive_convolution(x[:, first:last], window, weight, bias)
            torch.testing.assert_close(out[:, first:last], wanted, **TOLERANCE)
        after = torch.cat([window, x[:, first:last]], dim=1)[:, 1 - width :]
        assert torch.equal(pool[slot], after)


def test_convolution_step(random: torch.Generator) -> None:
    x, weight, bias = normal(random, 5, 10), normal(random, 10, 4), normal(random, 10)
    pool = normal(random, POOL_SLOTS, 10, 3)
    before, slots = pool.clone(), some_slots(random, 5)
    out = conv.causal_conv1d_update(x, pool, weight, bias, "silu", slots)
    for row, slot in enumerate(slots.tolist()):
        wanted = naive_convolution(x[row].unsqueeze(1), before[slot], weight, bias)[:, 0]
        torch.testing.assert_close(out[row], wanted, **TOLERANCE)
        assert torch.equal(pool[slot], torch.cat([before[slot][:, 1:], x[row, :, None]], dim=1))


def test_convolution_refuses_options_that_it_does_not_serve(random: torch.Generator) -> None:
    with pytest.raises(NotImplementedError, match="cache_seqlens"):
        conv.causal_conv1d_update(
            normal(random, 1, 2), normal(random, 2, 2, 3), normal(random, 2, 4),
            conv_state_indices=torch.tensor([1]), cache_seqlens=torch.zeros(1),
        )  # fmt: skip


@pytest.mark.parametrize("lengths", [case for case in LENGTHS if 0 not in case], ids=str)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("chunk", [16, 64])
def test_mamba2_prefill_equals_recurrence(
    random: torch.Generator, lengths: tuple[int, ...], with_state: bool, chunk: int
) -> None:
    heads, groups, width, size, total = 4, 2, 12, 8, sum(lengths)
    x, dt = normal(random, 1, total, heads, width), normal(random, 1, total, heads)
    B, C = (normal(random, 1, total, groups, size) for _ in range(2))
    A, D, bias = -normal(random, heads).exp(), normal(random, heads), normal(random, heads)
    initial = normal(random, len(lengths), heads, width, size) if with_state else None
    out = torch.empty_like(x)
    offsets = packed_offsets(lengths)
    # What `extra_buffer` asks for: the last chunk boundary of every sequence, by position where
    # it is off the flat grid.
    ends = [first + (last - first - 1) // chunk * chunk for first, last in spans(lengths)]

    grid, final, tracked = ssd.mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk, D=D, dt_bias=bias, initial_states=initial, cu_seqlens=offsets,
        dt_softplus=True, out=out, return_varlen_states=True, return_track_states=True,
        track_seq_idx=torch.arange(len(lengths)), track_end_locs=torch.tensor(ends),
        state_dtype=torch.float32,
    )  # fmt: skip

    assert tracked is not None
    steps = F.softplus(dt[0] + bias)
    for row, (first, last) in enumerate(spans(lengths)):
        start = torch.zeros(heads, width, size) if initial is None else initial[row]
        wanted, after = ssd.recurrent(
            x[0, first:last], steps[first:last], A, B[0, first:last], C[0, first:last], D, start
        )
        torch.testing.assert_close(out[0, first:last], wanted, **TOLERANCE)
        torch.testing.assert_close(final[row], after[-1], **TOLERANCE)
        done = ends[row] - first
        torch.testing.assert_close(tracked[0, row], after[done - 1] if done else start, **TOLERANCE)
        if first % chunk == 0:
            for begin in range(0, last - first, chunk):
                snapshot = after[begin - 1] if begin else start
                torch.testing.assert_close(grid[0, (first + begin) // chunk], snapshot, **TOLERANCE)


def test_mamba2_scan_refuses_a_position_off_its_grid(random: torch.Generator) -> None:
    x, dt = normal(random, 1, 40, 2, 4), normal(random, 1, 40, 2)
    B = normal(random, 1, 40, 1, 4)
    with pytest.raises(ValueError, match="begins no chunk"):
        ssd.mamba_chunk_scan_combined(
            x, dt, -torch.ones(2), B, B, 16, cu_seqlens=torch.tensor([0, 40]),
            out=torch.empty_like(x), return_varlen_states=True, return_track_states=True,
            track_seq_idx=torch.tensor([0]), track_end_locs=torch.tensor([17]),
        )  # fmt: skip


def test_mamba2_decode_equals_recurrence(random: torch.Generator) -> None:
    batch, heads, groups, width, size = 5, 4, 2, 12, 8
    x, dt = normal(random, batch, heads, width), normal(random, batch, heads)
    B, C = (normal(random, batch, groups, size) for _ in range(2))
    A, D, bias = -normal(random, heads).exp(), normal(random, heads), normal(random, heads)
    pool = normal(random, POOL_SLOTS, heads, width, size)
    before, slots = pool.clone(), some_slots(random, batch)
    out = torch.empty_like(x)
    ssd.selective_state_update(
        None, pool, x, dt[..., None].expand(-1, -1, width),
        A[:, None, None].expand(-1, width, size), B, C, D[:, None].expand(-1, width), None,
        bias[:, None].expand(-1, width), True, slots, -1, out, False, None, None, None, None,
    )  # fmt: skip
    steps = F.softplus(dt + bias)
    for row, slot in enumerate(slots.tolist()):
        one = slice(row, row + 1)
        wanted, after = ssd.recurrent(x[one], steps[one], A, B[one], C[one], D, before[slot])
        torch.testing.assert_close(out[one], wanted, **TOLERANCE)
        torch.testing.assert_close(pool[slot], after[-1], **TOLERANCE)


def naive_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None
) -> torch.Tensor:
    """The last tokens of a sequence attend to all of it; query [T, HQ, D], keys [L, HK, D]."""
    group = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", query, keys) * query.shape[-1] ** -0.5
    at = torch.arange(keys.shape[0] - query.shape[0], keys.shape[0])[:, None]
    key = torch.arange(keys.shape[0])
    visible = key <= at
    if window is not None:
        visible = visible & (key >= at - window)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("cached", [(0, 0), (40, 0), (600, 33)], ids=str)
def test_attention_over_a_paged_cache(
    random: torch.Generator, cached: tuple[int, ...], window: int | None
) -> None:
    new = (530, 20)
    seq_lens = torch.tensor([a + b for a, b in zip(cached, new, strict=True)])
    longest, slots = int(seq_lens.max()), 2400
    k_cache, v_cache = (normal(random, slots, 2, 8) for _ in range(2))
    table = torch.randperm(slots - 1, generator=random)[: 2 * longest].view(2, longest).int() + 1
    rows = torch.tensor([1, 0])
    options = {"scaling": 8**-0.5, "enable_gqa": True, "sliding_window_size": window}
    query = normal(random, sum(new), 4, 8)
    found = attention.extend(
        None, query, torch.empty_like(query), k_cache, v_cache, table, rows, seq_lens,
        torch.tensor(cached), torch.tensor(new), causal=True, **options,
    )  # fmt: skip
    step = normal(random, 2, 4, 8)
    stepped = attention.decode(
        None, step, torch.empty_like(step), k_cache, v_cache, table, rows, seq_lens, **options
    )
    for row, (first, last) in enumerate(spans(new)):
        held = table[rows[row], : seq_lens[row]].long()
        wanted = naive_attention(query[first:last], k_cache[held], v_cache[held], window)
        torch.testing.assert_close(found[first:last], wanted, **TOLERANCE)
        wanted = naive_attention(step[row : row + 1], k_cache[held], v_cache[held], window)
        torch.testing.assert_close(stepped[row : row + 1], wanted, **TOLERANCE)


def test_padded_decode_batch_ignores_what_stale_slots_hold(random: torch.Generator) -> None:
    k_cache, v_cache = (normal(random, 30, 2, 8) for _ in range(2))
    k_cache[20:], v_cache[20:] = float("nan"), float("nan")
    table = torch.tensor([list(range(1, 11)), [11, 12, 13, 14, 15, 16, 17, 25, 26, 27]])
    query, lengths = normal(random, 2, 4, 8), torch.tensor([10, 7])
    out = attention.decode(
        None, query, torch.empty_like(query), k_cache, v_cache, table, torch.tensor([0, 1]),
        lengths, scaling=8**-0.5, enable_gqa=True,
    )  # fmt: skip
    assert torch.isfinite(out).all()


def test_dense_experts_equal_the_routed_ones(random: torch.Generator) -> None:
    tokens, width, hidden, count, chosen = 6, 8, 12, 5, 2
    x = normal(random, tokens, width)
    w13, w2 = normal(random, count, 2 * hidden, width), normal(random, count, width, hidden)
    weights, ids = normal(random, tokens, count).softmax(-1).topk(chosen)
    found = experts.dense_experts(x, w13, w2, weights, ids.int())
    for t in range(tokens):
        wanted = torch.zeros(width)
        for weight, expert in zip(weights[t], ids[t].tolist(), strict=True):
            gate, up = (w13[expert] @ x[t]).chunk(2)
            wanted += weight * (w2[expert] @ (F.silu(gate) * up))
        torch.testing.assert_close(found[t], wanted, **TOLERANCE)


def test_state_copies_follow_the_mask(random: torch.Generator) -> None:
    windows, states = normal(random, 2, POOL_SLOTS, 4, 3), normal(random, 2, POOL_SLOTS, 2, 4, 4)
    source, target = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    mask = torch.tensor([True, False, True])
    wanted_windows, wanted_states = windows.clone(), states.clone()
    for a, b in ((1, 4), (3, 6)):
        wanted_windows[:, b], wanted_states[:, b] = windows[:, a], states[:, a]
    by_layer = (windows.clone(), states.clone())
    state_copy.track_mamba_states_all_layers(windows, states, source, mask, target, 3)
    for layer in range(2):
        state_copy.track_mamba_states_if_needed(
            by_layer[0][layer], by_layer[1][layer], source, mask, target, 3
        )
    assert torch.equal(windows, wanted_windows) and torch.equal(by_layer[0], wanted_windows)
    assert torch.equal(states, wanted_states) and torch.equal(by_layer[1], wanted_states)


def test_chunk_plan_keeps_every_token_once(random: torch.Generator) -> None:
    plan = ChunkPlan((0, 5, 5, 21, 22), 8)
    assert plan.counts == (1, 0, 2, 1) and plan.total == 4
    packed = normal(random, 22, 3)
    joined = torch.empty_like(packed)
    plan.join_into(plan.split(packed), joined)
    assert torch.equal(joined, packed)
    assert plan.split(torch.ones(22)).sum() == 22


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("no.such.module:name", "has moved"),
        ("textwrap:no_such_name", "has moved"),
        ("textwrap:NoSuchClass.method", "has moved"),
        ("textwrap:dedent", "its CPU reference takes"),
    ],
)
def test_a_moved_or_changed_target_is_an_error(target: str, complaint: str) -> None:
    with pytest.raises(IncompatibleSGLang, match=complaint):
        apply([Replacement(target, lambda something_else: None)])


def test_a_filled_gap_is_an_error() -> None:
    with pytest.raises(IncompatibleSGLang, match="implementation of its own"):
        apply([Replacement("textwrap:dedent", lambda text: text, fills_gap=True)])


def test_cpu_lists() -> None:
    assert parse_cpus("0-2,5") == {0, 1, 2, 5} and parse_cpus("") == set()


def refuse_to_prepare() -> None:
    raise AssertionError("the host was touched")


@pytest.mark.parametrize("accelerator", ["cuda", "xpu", "mps"])
def test_stays_away_from_accelerators(monkeypatch: pytest.MonkeyPatch, accelerator: str) -> None:
    monkeypatch.setattr(getattr(torch, accelerator), "is_available", lambda: True)
    monkeypatch.setattr("sglang_cpu_reference.host.prepare", refuse_to_prepare)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    assert sglang_cpu_reference.activate() is None
    assert "SGLANG_USE_CPU_ENGINE" not in os.environ


def test_stays_away_from_a_real_kernel_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sgl_kernel").mkdir()
    (tmp_path / "sgl_kernel" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sgl_kernel", raising=False)
    assert sglang_cpu_reference.reason_to_stay_away() == "a real sgl_kernel is installed"


def test_stays_away_where_told_so_or_on_another_architecture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "0")
    assert "SGLANG_USE_CPU_ENGINE=0" in str(sglang_cpu_reference.reason_to_stay_away())
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "aarch64" in str(sglang_cpu_reference.reason_to_stay_away())


def test_refuses_another_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    # SGLang imports the platform; the other way round is a circle.
    pytest.importorskip("sglang.srt.utils")
    platform = importlib.import_module("sglang_cpu_reference.platform")
    monkeypatch.setattr(platform, "version", lambda name: "0.5.24")
    with pytest.raises(IncompatibleSGLang, match=r"0\.5\.23, found 0\.5\.24"):
        platform.CpuReferencePlatform()


def test_qwen3_5_takes_heads_apart_into_queries_keys_and_gates(random: torch.Generator) -> None:
    tokens, heads, groups, width = 3, 4, 2, 6
    q_gate = torch.randn(tokens, heads * 2 * width, generator=random)
    k = torch.randn(tokens, groups * width, generator=random)
    q_weight, k_weight = torch.randn(2, width, generator=random)
    q, keys, gates = layers.normed_queries_keys_and_gate(
        q_gate, k, q_weight, k_weight, 1e-6, width, heads
    )
    for token in range(tokens):
        for head in range(heads):
            both = q_gate[token, head * 2 * width : (head + 1) * 2 * width]
            wanted = both[:width] * both[:width].square().mean().rsqrt() * (1 + q_weight)
            torch.testing.assert_close(q[token * heads + head], wanted, **TOLERANCE)
            assert gates[token * heads + head].equal(both[width:])
        for group in range(groups):
            key = k[token, group * width : (group + 1) * width]
            wanted = key * key.square().mean().rsqrt() * (1 + k_weight)
            torch.testing.assert_close(keys[token * groups + group], wanted, **TOLERANCE)


def test_qwen3_5_takes_projections_apart(random: torch.Generator) -> None:
    parts = [torch.randn(5, width, generator=random) for width in (6, 6, 16, 16, 4, 4)]
    q, k, v, z, b, a = parts
    qkvz, ba = torch.cat([q, k, v, z], -1), torch.cat([b, a], -1)
    found = layers.split_projections(qkvz, ba, 2, 4, 3, 4)
    assert found[0].equal(torch.cat([q, k, v], -1)) and found[1].equal(z.view(5, 4, 4))
    assert found[2].equal(b) and found[3].equal(a)
    x, gate = torch.randn(2, 5, 8, generator=random)
    wanted = x * gate.sigmoid()
    layers.multiply_by_sigmoid(x, gate)
    torch.testing.assert_close(x, wanted)
