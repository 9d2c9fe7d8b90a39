"""Kimi delta attention and latent attention against what defines them, one token after another."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sglang_cpu_reference")
from sglang_cpu_reference import attention, kimi_delta

Tensor = torch.Tensor
# Two orders of fp32 summation over up to some hundred tokens.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}
HEADS, WIDTH, VALUE_WIDTH, SLOTS = 2, 8, 12, 7
#: Tokens after which SGLang snapshots a state.
CHUNK = 64

seeds = st.integers(0, 2**16)
batches = st.lists(st.integers(0, 100), min_size=1, max_size=3)


class Layer:
    """Random inputs of one layer for some tokens, and its parameters."""

    def __init__(self, seed: int, tokens: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.q, self.k, self.a = (self.normal(1, tokens, HEADS, WIDTH) for _ in range(3))
        self.v = self.normal(1, tokens, HEADS, VALUE_WIDTH)
        self.b = self.normal(1, tokens, HEADS)
        self.A_log, self.dt_bias = self.normal(1, 1, HEADS, 1), self.normal(HEADS * WIDTH)
        self.pool = self.normal(SLOTS, HEADS, VALUE_WIDTH, WIDTH)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def slots(self, count: int) -> Tensor:
        """Different ones in no order, never the padding slot 0."""
        return torch.randperm(SLOTS - 1, generator=self.random)[:count].int() + 1

    def prefill(
        self, pool: Tensor, slots: Tensor, bounds: list[int], **options: object
    ) -> tuple[Tensor, Tensor]:
        """Tokens from the first bound to the last; a sequence between each two."""
        part = slice(bounds[0], bounds[-1])
        offsets = torch.tensor([bound - bounds[0] for bound in bounds], dtype=torch.int32)
        return kimi_delta.chunk_kda(
            self.q[:, part], self.k[:, part], self.v[:, part], self.a[:, part], self.b[:, part],
            pool, slots, offsets, self.A_log, self.dt_bias, use_qk_l2norm_in_kernel=True,
            beta_is_raw=True, output_intermediate_states=True, **options,
        )  # fmt: skip

    def step(self, pool: Tensor, slots: Tensor, first: int, **options: object) -> Tensor:
        """One token from ``first`` on for each slot, as SGLang hands them to a decode batch."""
        part = slice(first, first + len(slots))
        return kimi_delta.step(
            self.A_log, self.a[0, part].flatten(1), self.dt_bias, 1.0, 20.0, self.q[:, part],
            self.k[:, part], self.v[:, part], self.b[:, part], pool, slots,
            **({"use_qk_l2norm_in_kernel": True, "is_kda": True} | options),
        )  # fmt: skip

    def recurrent(self, first: int, last: int, state: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The definition: outputs of these tokens, the state before the first and after each."""
        outputs, states = [], [state]
        for t in range(first, last):
            query, key = (F.normalize(x[0, t], dim=-1) for x in (self.q, self.k))
            pace = F.softplus(self.a[0, t] + self.dt_bias.view(HEADS, WIDTH))
            keep = torch.exp(-self.A_log.exp().view(HEADS, 1) * pace)
            strength = torch.sigmoid(self.b[0, t])
            state = torch.stack(
                [
                    (s * keep[h]) @ (torch.eye(WIDTH) - strength[h] * torch.outer(key[h], key[h]))
                    + strength[h] * torch.outer(self.v[0, t, h], key[h])
                    for h, s in enumerate(state)
                ]
            )
            states.append(state)
            outputs.append(torch.einsum("hvk,hk->hv", state, query) / WIDTH**0.5)
        return torch.stack(outputs) if outputs else self.v.new_empty(0, HEADS, VALUE_WIDTH), states


@settings(max_examples=15)
@given(seeds, batches)
def test_prefill_equals_the_recurrence(seed: int, lengths: list[int]) -> None:
    layer = Layer(seed, sum(lengths))
    bounds = [0, *accumulate(lengths)]
    slots, pool = layer.slots(len(lengths)), layer.pool.clone()
    out, before_chunks = layer.prefill(pool, slots, bounds)
    chunk = 0
    for (first, last), slot in zip(pairwise(bounds), slots.tolist(), strict=True):
        wanted, states = layer.recurrent(first, last, layer.pool[slot])
        torch.testing.assert_close(out[0, first:last], wanted, **TOLERANCE)
        torch.testing.assert_close(pool[slot], states[-1], **TOLERANCE)
        for done in range(0, last - first, CHUNK):
            torch.testing.assert_close(before_chunks[0, chunk], states[done], **TOLERANCE)
            chunk += 1
    assert chunk == before_chunks.shape[1]
    others = sorted(set(range(SLOTS)) - set(slots.tolist()))
    assert torch.equal(pool[others], layer.pool[others])


@settings(max_examples=15)
@given(seeds, st.data())
def test_a_prompt_resumes_from_its_snapshot(seed: int, data: st.DataObject) -> None:
    """What `extra_buffer` stores in a prefill, resumed in another slot, leads to the same."""
    tokens = data.draw(st.integers(1, 150))
    chunk = data.draw(st.integers(0, (tokens - 1) // CHUNK))
    layer = Layer(seed, tokens + 3)
    whole, resumed = layer.slots(2)
    pool = layer.pool.clone()
    snapshot = torch.full((2, *pool.shape[1:]), torch.nan)
    out, _ = layer.prefill(
        pool, torch.stack([whole, resumed]), [0, tokens, tokens + 3],
        track_state=snapshot, track_chunk_idx=torch.tensor([chunk, -1]),
    )  # fmt: skip
    assert snapshot[1].isnan().all(), "nothing was asked of the second sequence"
    pool[resumed] = snapshot[0]
    again, _ = layer.prefill(pool, resumed[None], [chunk * CHUNK, tokens])
    torch.testing.assert_close(again[0], out[0, chunk * CHUNK : tokens], **TOLERANCE)
    torch.testing.assert_close(pool[resumed], pool[whole], **TOLERANCE)


@settings(max_examples=15)
@given(seeds, st.integers(1, SLOTS - 1))
def test_a_step_equals_the_recurrence(seed: int, count: int) -> None:
    layer = Layer(seed, count)
    slots, pool = layer.slots(count), layer.pool.clone()
    out = layer.step(pool, slots, 0)
    for row, slot in enumerate(slots.tolist()):
        wanted, states = layer.recurrent(row, row + 1, layer.pool[slot])
        torch.testing.assert_close(out[0, row : row + 1], wanted, **TOLERANCE)
        torch.testing.assert_close(pool[slot], states[-1], **TOLERANCE)
    others = sorted(set(range(SLOTS)) - set(slots.tolist()))
    assert torch.equal(pool[others], layer.pool[others])


def test_prefill_survives_strong_decay() -> None:
    """Products of decays underflow, and their inverses would overflow, within a few tokens."""
    layer = Layer(0, 130)
    layer.a += 40.0
    pool = layer.pool.clone()
    out, _ = layer.prefill(pool, torch.tensor([1]), [0, 130])
    wanted, states = layer.recurrent(0, 130, layer.pool[1])
    torch.testing.assert_close(out[0], wanted, **TOLERANCE)
    torch.testing.assert_close(pool[1], states[-1], **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
def test_results_have_the_dtype_of_the_input(dtype: torch.dtype, stored: torch.dtype) -> None:
    layer = Layer(0, 70)
    for name in ("q", "k", "v", "a", "b"):
        setattr(layer, name, getattr(layer, name).to(dtype))
    pool, slot = layer.pool.to(stored), torch.tensor([1])
    before = pool.clone()
    out, _ = layer.prefill(pool, slot, [0, 69])
    assert out.dtype == dtype and pool.dtype == stored and not torch.equal(pool[1], before[1])
    assert layer.step(pool, slot, 69).dtype == dtype


def test_what_is_not_served_is_refused() -> None:
    layer, slot = Layer(0, 1), torch.tensor([1])
    pool = layer.pool.clone()
    with pytest.raises(NotImplementedError, match="lower_bound"):
        layer.prefill(pool, slot, [0, 1], lower_bound=-5.0)
    with pytest.raises(NotImplementedError, match="lower_bound"):
        layer.step(pool, slot, 0, lower_bound=-5.0)
    with pytest.raises(NotImplementedError, match="drafts"):
        layer.step(pool, slot, 0, disable_state_update=True)
    assert torch.equal(pool, layer.pool)


@settings(max_examples=15)
@given(seeds, st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=3))
def test_absorbed_latents_equal_heads_of_their_own(
    seed: int, requests: list[tuple[int, int]]
) -> None:
    """Latent attention, as its layer hands it over: one key for all heads, its front the value."""
    random = torch.Generator().manual_seed(seed)
    heads, latent, rope, nope, width = 3, 10, 4, 6, 5
    new = [count for _, count in requests]
    lengths = torch.tensor([sum(request) for request in requests])
    slots, longest = 400, int(lengths.max())
    cache = torch.randn(slots, 1, latent + rope, generator=random)
    table = torch.randperm(slots, generator=random)[: len(new) * longest].view(len(new), longest)
    up_keys = torch.randn(heads, nope, latent, generator=random)
    up_values = torch.randn(heads, latent, width, generator=random)
    query = torch.randn(sum(new), heads, nope + rope, generator=random)
    absorbed = torch.cat(
        [torch.einsum("thn,hnl->thl", query[..., :nope], up_keys), query[..., nope:]], dim=-1
    )
    shared = (cache, cache[..., :latent], table, torch.arange(len(new)), lengths)
    scale = (nope + rope) ** -0.5
    found = attention.extend(
        None, absorbed, query.new_empty(sum(new), heads, latent), *shared,
        torch.tensor([prefix for prefix, _ in requests]), torch.tensor(new),
        scaling=scale, enable_gqa=True, causal=True,
    )  # fmt: skip
    ends = list(accumulate(new))
    last = [end - 1 for end in ends]
    stepped = attention.decode(
        None, absorbed[last], query.new_empty(len(new), heads, latent), *shared,
        scaling=scale, enable_gqa=True,
    )  # fmt: skip
    for row, (count, end) in enumerate(zip(new, ends, strict=True)):
        held = cache[table[row, : lengths[row]], 0]
        keys = torch.cat(
            [
                torch.einsum("cl,hnl->hcn", held[:, :latent], up_keys),
                held[:, latent:].expand(heads, -1, -1),
            ],
            dim=-1,
        )
        values = torch.einsum("cl,hlv->hcv", held[:, :latent], up_values)
        scores = torch.einsum("qhd,hcd->hqc", query[end - count : end], keys) * scale
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(int(lengths[row]) - count + 1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        wanted = torch.einsum("hqc,hcv->qhv", weights, values)
        for mine, theirs in ((found[end - count : end], wanted), (stepped[[row]], wanted[-1:])):
            torch.testing.assert_close(
                torch.einsum("thl,hlv->thv", mine, up_values), theirs, rtol=1e-3, atol=1e-4
            )
