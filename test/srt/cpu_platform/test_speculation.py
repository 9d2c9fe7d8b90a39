"""Speculative decoding's reference kernels: every node of a tree of drafts is a sequence."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sglang_cpu_reference")
from sglang_cpu_reference import attention, conv, draft_attention, drafts, gated_delta, state_copy

TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}
POOL_SLOTS = 9
Tensor = torch.Tensor


@pytest.fixture(params=range(5), ids=lambda seed: f"seed{seed}")
def random(request: pytest.FixtureRequest) -> Iterator[torch.Generator]:
    yield torch.Generator().manual_seed(request.param)


def normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=random)


def draw(random: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=random))


def some_parents(random: torch.Generator, count: int, nodes: int, chained: bool) -> Tensor:
    """[count, nodes]: each node's parent comes before it; a root has -1."""
    if chained:
        return drafts.chain(count, nodes).clone()
    rows = [[-1, *(draw(random, 0, node) for node in range(1, nodes))] for _ in range(count)]
    return torch.tensor(rows)


def paths(parents: Tensor) -> list[list[int]]:
    """The nodes from the root to each node of one tree, itself last."""
    found: list[list[int]] = []
    for node, parent in enumerate(parents.tolist()):
        found.append([*(found[parent] if parent >= 0 else []), node])
    return found


def masks(parents: Tensor) -> Tensor:
    """[B, n, n]: a node sees its path."""
    visible = torch.zeros(*parents.shape, parents.shape[1], dtype=torch.bool)
    for row, one in enumerate(parents):
        for node, path in enumerate(paths(one)):
            visible[row, node, path] = True
    return visible


def links(parents: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, rows, first children and next siblings, as the reference reads them off masks."""
    count, nodes = parents.shape
    positions, rows = torch.empty(count * nodes, dtype=torch.long), torch.empty_like(parents)
    first, sibling = torch.full_like(parents, -5), torch.full_like(parents, -5)
    mask = masks(parents).flatten()
    drafts.read_masks(mask, lengths, positions, rows, first, sibling, count, nodes)
    return positions, rows, first, sibling


@pytest.mark.parametrize("topk", [1, 3])
def test_a_tree_of_sglangs_candidates_has_the_paths_that_they_were_drawn_by(
    random: torch.Generator, topk: int
) -> None:
    """SGLang chooses; its hidden states here are the candidates' paths of tokens."""
    from sglang.srt.speculative.eagle_utils import organize_draft_results
    from sglang.srt.speculative.spec_utils import select_top_k_tokens

    count, steps, nodes = 3, 4, 5 if topk == 1 else 7
    scores, lists = None, ([], [], [])  # type: ignore[var-annotated]
    hidden = torch.zeros(count, steps)
    known: dict[int, tuple[int, ...]] = {}
    fresh = iter(range(1, 10_000))
    for step in range(steps):
        rows = count if step == 0 else count * topk
        chance = torch.rand(rows, topk, generator=random).softmax(-1)
        tokens = torch.tensor([[next(fresh) for _ in range(topk)] for _ in range(rows)])
        for row in range(rows):
            above = tuple(int(one) for one in hidden[row] if one)
            known |= {int(token): (*above, int(token)) for token in tokens[row]}
        chosen, hidden, scores, info = select_top_k_tokens(
            step, chance, tokens, hidden, scores, topk
        )
        for kept, one in zip(lists, info, strict=True):
            kept.append(one)
        hidden = torch.zeros(count * topk, steps)
        for row, token in enumerate(chosen.tolist()):
            hidden[row, : step + 1] = torch.tensor(known[token])
    numbers, indices, tokens = organize_draft_results(*lists, nodes)
    lengths = torch.tensor([7, 0, 40])
    mask = torch.ones(count * nodes * nodes, dtype=torch.bool)
    positions = torch.empty(count * nodes, dtype=torch.long)
    rows_, first, sibling = (torch.full((count, nodes), -1) for _ in range(3))

    drafts.build_tree(
        numbers, indices, lengths, mask, positions, rows_, first, sibling, topk, steps, nodes, 1
    )

    parents = drafts.parents_of(first, sibling)
    for row in range(count):
        said = [0, *tokens[row].tolist()]
        for node, path in enumerate(paths(parents[row])):
            assert tuple(said[one] for one in path[1:]) == (known[said[node]] if node else ())
            assert positions[row * nodes + node] == lengths[row] + len(path) - 1
    assert torch.equal(mask.view(count, nodes, nodes), masks(parents))
    assert rows_.flatten().tolist() == list(range(count * nodes))
    with pytest.raises(NotImplementedError, match="mode 0"):
        drafts.build_tree(
            numbers, indices, lengths, mask, positions, rows_, first, sibling, topk, steps, nodes, 0
        )


@pytest.mark.parametrize("chained", [True, False])
def test_masks_links_and_parents_say_the_same(random: torch.Generator, chained: bool) -> None:
    parents = some_parents(random, 3, 8, chained)
    lengths = torch.tensor([0, 5, 90])
    positions, rows, first, sibling = links(parents, lengths)
    assert torch.equal(drafts.parents_of(first, sibling), parents)
    depth = [len(path) - 1 + int(lengths[row]) for row in range(3) for path in paths(parents[row])]
    assert positions.tolist() == depth and rows.flatten().tolist() == list(range(24))


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("longest", [3, 8])
def test_the_longest_path_of_the_models_own_choices_is_accepted(
    random: torch.Generator, chained: bool, longest: int
) -> None:
    count, nodes = 4, 8
    parents = some_parents(random, count, nodes, chained)
    _, rows, first, sibling = links(parents, torch.zeros(count, dtype=torch.long))
    said = torch.randint(0, 3, (count, nodes), generator=random)
    guesses = torch.randint(0, 3, (count, nodes), generator=random)
    for row in range(count):
        # Siblings differ, as the candidates of one node do.
        for node in range(1, nodes):
            taken = [
                int(guesses[row, one]) for one in range(1, node)
                if parents[row, one] == parents[row, node]
            ]  # fmt: skip
            while int(guesses[row, node]) in taken:
                guesses[row, node] += 1
    predicts = torch.zeros(count * nodes, dtype=torch.int32)
    accepted = torch.full((count, longest), -1, dtype=torch.int32)
    number = torch.empty(count, dtype=torch.int32)

    drafts.verify_greedy(predicts, accepted, number, guesses, rows, first, sibling, said)

    for row in range(count):
        right = [
            path for path in paths(parents[row])
            if len(path) <= longest
            and all(guesses[row, b] == said[row, a] for a, b in pairwise(path))
        ]  # fmt: skip
        best = max(right, key=len)
        assert number[row] == len(best) - 1
        assert accepted[row, : len(best)].tolist() == [row * nodes + node for node in best]
        assert accepted[row, len(best) :].tolist() == [-1] * (longest - len(best))
        assert predicts[row * nodes + torch.tensor(best)].tolist() == said[row, best].tolist()


def test_slots_of_drafts(random: torch.Generator) -> None:
    table = torch.randperm(60, generator=random).view(4, 15).int()
    requests, start = torch.tensor([2, 0, 3]), torch.tensor([4, 0, 9], dtype=torch.int32)
    end = start + torch.tensor([3, 0, 6], dtype=torch.int32)
    spans = list(zip(requests.tolist(), start.tolist(), end.tolist(), strict=True))
    wanted = [int(slot) for row, a, b in spans for slot in table[row, a:b]]
    found = torch.full((12,), -7)
    drafts.slots_between(requests, table, start, end, found, 15)
    assert found.tolist() == wanted + [-7] * 3

    drafts.slots_from(requests, table, start, found, 15, 2, 2)
    assert found.tolist() == [int(slot) for row, a, _ in spans for slot in table[row, a : a + 4]]

    written = table.clone()
    drafts.put_slots_between(requests, written, start, end, torch.arange(100, 109), 15)
    packed = iter(range(100, 109))
    for row, a, b in spans:
        table[row, a:b] = torch.tensor([next(packed) for _ in range(a, b)], dtype=torch.int32)
    assert torch.equal(written, table)


def test_accepted_tokens_and_slots_are_packed(random: torch.Generator) -> None:
    accepted = torch.tensor([[0, 2, -1], [3, -1, -1], [6, 7, 8]], dtype=torch.int32)
    slots = torch.randperm(40, generator=random)[:9]
    found = torch.zeros(9, dtype=torch.long)
    drafts.accepted_slots(accepted, slots, found)
    assert found.tolist() == [*slots[[0, 2, 3, 6, 7, 8]].tolist(), 0, 0, 0]
    last = torch.empty(3, dtype=torch.int32)
    tokens = torch.arange(9, dtype=torch.int32).view(3, 3)
    drafts.last_accepted(tokens, torch.tensor([2, 1, 3]), last, 3)
    assert last.tolist() == [1, 3, 8]


def test_slots_are_moved_in_every_pool(random: torch.Generator) -> None:
    pools = [normal(random, 12, 2, 3), normal(random, 12, 5).bfloat16()]
    before = [pool.clone() for pool in pools]
    addresses = torch.tensor([pool.data_ptr() for pool in pools], dtype=torch.uint64)
    widths = torch.tensor([pool[0].nbytes for pool in pools])
    # A slot that is read after it was written, and padding.
    target, source = torch.tensor([3, 4, 0, 0]), torch.tensor([4, 9, 0, 0])
    drafts.move_slots(addresses, widths, target, source)
    for pool, old in zip(pools, before, strict=True):
        wanted = old.clone()
        wanted[target] = old[source]
        assert torch.equal(pool, wanted)
    drafts.move_slots(addresses, widths, target[:0], source[:0])


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("heads", [(2, 2), (2, 4)], ids=str)
def test_gated_delta_verification_equals_recurrence(
    random: torch.Generator, chained: bool, heads: tuple[int, int]
) -> None:
    count, nodes, key_width, value_width = 3, 6, 16, 24
    key_heads, value_heads = heads
    parents = some_parents(random, count, nodes, chained)
    q, k = (normal(random, 1, count * nodes, key_heads, key_width) for _ in range(2))
    v = normal(random, 1, count * nodes, value_heads, value_width)
    a, b = (normal(random, count * nodes, value_heads) for _ in range(2))
    A_log, dt_bias = normal(random, value_heads), normal(random, value_heads)
    g, beta = gated_delta.gates(A_log, a, b, dt_bias)
    pool = normal(random, POOL_SLOTS, value_heads, value_width, key_width)
    before = pool.clone()
    slots = torch.randperm(POOL_SLOTS - 1, generator=random)[:count].int() + 1
    kept = torch.full((5, nodes, *pool.shape[1:]), 7.0)
    rows = torch.tensor([2, 0, 4, 4])

    out = gated_delta.decode_or_verify(
        A_log, dt_bias, q, k, v, a, b, pool, slots, torch.arange(count + 1) * nodes, True,
        disable_state_update=True, intermediate_states_buffer=kept,
        intermediate_state_indices=rows, cache_steps=nodes,
        retrieve_parent_token=None if chained else parents,
    )  # fmt: skip

    assert torch.equal(pool, before) and torch.equal(kept[[1, 3]], torch.full_like(kept[:2], 7.0))
    for row in range(count):
        for node, path in enumerate(paths(parents[row])):
            at = row * nodes + torch.tensor(path)
            wanted, after = gated_delta.recurrent(
                gated_delta.l2_normalize(q[0, at]) * key_width**-0.5,
                gated_delta.l2_normalize(k[0, at]),
                v[0, at],
                g[0, at],
                beta[0, at],
                before[slots[row]],
            )
            torch.testing.assert_close(out[0, row * nodes + node], wanted[-1], **TOLERANCE)
            torch.testing.assert_close(kept[rows[row], node], after[-1], **TOLERANCE)


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_convolution_of_drafts(random: torch.Generator, chained: bool, with_bias: bool) -> None:
    count, nodes, channels, width = 3, 6, 5, 4
    parents = some_parents(random, count, nodes, chained)
    _, _, first, sibling = links(parents, torch.zeros(count, dtype=torch.long))
    # As SGLang has it: tokens of all requests, seen with the channels first.
    x = normal(random, count * nodes, channels).view(count, nodes, channels).transpose(1, 2)
    weight = normal(random, channels, width)
    bias = normal(random, channels) if with_bias else None
    pool = normal(random, POOL_SLOTS, channels, width - 1)
    before, slots = pool.clone(), torch.tensor([4, 1, 8])
    kept, found = torch.zeros(5, nodes, channels, width - 1), torch.empty_like(parents)
    rows = torch.tensor([2, 0, 4])
    tree = {} if chained else {
        "retrieve_next_token": first, "retrieve_next_sibling": sibling,
        "retrieve_parent_token": found,
    }  # fmt: skip

    out = conv.causal_conv1d_update(
        x, pool, weight, bias, "silu", slots,
        intermediate_conv_window=kept, intermediate_state_indices=rows, **tree,
    )  # fmt: skip

    assert torch.equal(pool, before)
    assert chained or torch.equal(found, parents)
    assert out.transpose(1, 2).view(count * nodes, -1).shape == (count * nodes, channels)
    for row in range(count):
        for node, path in enumerate(paths(parents[row])):
            inputs = torch.cat([before[slots[row]], x[row][:, path]], dim=1)
            wanted = F.conv1d(inputs[None], weight[:, None], bias, groups=channels)[0, :, -1]
            torch.testing.assert_close(out[row, :, node], F.silu(wanted), **TOLERANCE)
            torch.testing.assert_close(kept[rows[row], node], inputs[:, 1 - width :])


@pytest.mark.parametrize("chained", [True, False])
def test_attention_of_drafts(random: torch.Generator, chained: bool) -> None:
    nodes, lengths = 6, torch.tensor([40, 3])
    parents = some_parents(random, 2, nodes, chained)
    k_cache, v_cache = (normal(random, 200, 2, 8) for _ in range(2))
    table = torch.randperm(199, generator=random)[:100].view(2, 50).int() + 1
    requests = torch.tensor([1, 0])
    query = normal(random, 2 * nodes, 4, 8)
    out = attention.verify(
        None, query, torch.empty_like(query), k_cache, v_cache, table, requests, lengths,
        masks(parents), scaling=8**-0.5, enable_gqa=True,
    )  # fmt: skip
    for row, (request, length) in enumerate(zip([1, 0], lengths.tolist(), strict=True)):
        for node, path in enumerate(paths(parents[row])):
            at = torch.tensor([*range(length), *(length + one for one in path)])
            held = table[request, at].long()
            keys, values = (cache[held].repeat_interleave(2, 1) for cache in (k_cache, v_cache))
            one = query[row * nodes + node]
            weights = (torch.einsum("hd,khd->hk", one, keys) * 8**-0.5).softmax(-1)
            wanted = torch.einsum("hk,khd->hd", weights, values)
            torch.testing.assert_close(out[row * nodes + node], wanted, **TOLERANCE)


@pytest.mark.parametrize("topk", [1, 3])
def test_each_branch_of_a_draft_model_reads_its_own_slots(
    random: torch.Generator, topk: int
) -> None:
    table = torch.randperm(120, generator=random).view(3, 40).int()
    requests, lengths, steps = torch.tensor([2, 0]), torch.tensor([5, 11]), 4
    found, rows = draft_attention.branches(table, requests, lengths, topk, steps)
    for row, (request, length) in enumerate(zip([2, 0], [5, 11], strict=True)):
        for branch in range(topk):
            own = range(length + branch * steps, length + (branch + 1) * steps)
            wanted = [*table[request, :length].tolist(), *table[request, list(own)].tolist()]
            read = found[rows[row * topk + branch], : length + steps]
            assert read.tolist() == wanted


def test_states_of_accepted_drafts_become_the_requests_own(random: torch.Generator) -> None:
    layers, drafted = 2, 4
    caches = SimpleNamespace(
        temporal=normal(random, layers, POOL_SLOTS, 3, 5),
        intermediate_ssm=normal(random, layers, 4, drafted, 3, 5),
        conv=[normal(random, layers, POOL_SLOTS, 6, 3), torch.empty(layers, POOL_SLOTS, 0, 3)],
        intermediate_conv_window=[
            normal(random, layers, 4, drafted, 6, 3),
            torch.empty(layers, 4, drafted, 0, 3),
        ],
    )
    pairs = [
        (caches.temporal, caches.intermediate_ssm),
        (caches.conv[0], caches.intermediate_conv_window[0]),
    ]
    before = [pool.clone() for pool, _ in pairs]
    own, last = torch.tensor([3, 7, 1]), torch.tensor([0, 3, 2])
    tracked, steps = torch.tensor([5, 8, -1]), torch.tensor([-1, 1, 2])
    state_copy.scatter_mamba_states_after_mtp_verify(caches, own, last, tracked, steps)
    for (pool, kept), old in zip(pairs, before, strict=True):
        wanted = old.clone()
        for row in range(3):
            wanted[:, own[row]] = kept[:, row, last[row]]
        wanted[:, 8] = kept[:, 1, 1]
        assert torch.equal(pool, wanted)
