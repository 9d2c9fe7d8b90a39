"""What speculative decoding does with drafts: their tree, which are accepted, where they lie.

The drafts of a request and the token before them, its root, are n nodes of a tree, numbered so
that a node comes after its parent. Links describe it: the first child of each node and its next
sibling, -1 where there is none. Node i of request b is row b * n + i of a verified batch.
Sizes: B requests, n nodes each.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch

Tensor = torch.Tensor

ROOT = 0
NONE = -1
#: SGLang's `TreeMaskMode.QLEN_ONLY`: a mask over the nodes alone, as it has it on a CPU.
NODES_ONLY = 1


def build_tree(
    parent_list: Tensor,
    selected_index: Tensor,
    verified_seq_len: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """Describe the trees of drafts that SGLang chose among its candidates.

    A candidate's number divided by topk is the place in parent_list [B, *] of its parent's number;
    place 0 is the root's. selected_index [B, n - 1]: the candidates that became nodes 1 and on;
    verified_seq_len [B]. Fills tree_mask [B * n * n] (a node sees its ancestors and itself),
    positions [B * n], retrieve_index, retrieve_next_token and retrieve_next_sibling [B, n].
    A node whose parent was not chosen is linked to none.

    Raises:
        NotImplementedError: the mask is to hold the prompt's columns too, or bits.
    """
    if int(tree_mask_mode) != NODES_ONLY:
        raise NotImplementedError(f"tree masks of mode {tree_mask_mode}; a CPU has mode 1")
    count, nodes = len(verified_seq_len), draft_token_num
    masks = tree_mask[: count * nodes * nodes].view(count, nodes, nodes)
    retrieve_index.copy_(torch.arange(count * nodes).view(count, nodes))
    rows = zip(
        parent_list.tolist(), selected_index.tolist(), verified_seq_len.tolist(), strict=True
    )
    for row, (numbers, chosen, length) in enumerate(rows):
        parents = [NONE, *(_parent(one // topk, numbers, chosen) for one in chosen)]
        visible = torch.eye(nodes, dtype=torch.bool)
        for node, parent in enumerate(parents[1:], 1):
            visible[node] |= visible[max(parent, ROOT)]
        masks[row] = visible
        positions[row * nodes : (row + 1) * nodes] = visible.sum(-1) - 1 + length
        _link(parents, retrieve_next_token[row], retrieve_next_sibling[row])


def _parent(place: int, numbers: list[int], chosen: list[int]) -> int:
    if place == 0:
        return ROOT
    number = numbers[place]
    return chosen.index(number) + 1 if number in chosen else NONE


def _link(parents: list[int], next_token: Tensor, next_sibling: Tensor) -> None:
    first: dict[int, int] = {}
    siblings = [NONE] * len(parents)
    for node in range(len(parents) - 1, 0, -1):
        if parents[node] != NONE:
            siblings[node] = first.get(parents[node], NONE)
            first[parents[node]] = node
    next_token.copy_(torch.tensor([first.get(node, NONE) for node in range(len(parents))]))
    next_sibling.copy_(torch.tensor(siblings))


def read_masks(
    tree_mask: Tensor,
    verified_seq_len: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """Links and positions of trees that are given as masks [B * n * n]; fills as `build_tree`."""
    nodes = draft_token_num
    masks = tree_mask[: batch_size * nodes * nodes].view(batch_size, nodes, nodes).bool()
    before = masks & torch.ones(nodes, nodes, dtype=torch.bool).tril(-1)
    depths = before.sum(-1) + verified_seq_len.view(-1, 1)
    positions.copy_(depths.flatten())
    retrieve_index.copy_(torch.arange(batch_size * nodes).view(batch_size, nodes))
    nearest = torch.where(before, torch.arange(nodes), NONE).amax(-1)
    for row, parents in enumerate(nearest.tolist()):
        _link(parents, retrieve_next_token[row], retrieve_next_sibling[row])


def parents_of(next_token: Tensor, next_sibling: Tensor) -> Tensor:
    """The parent [B, n] of each node by the links [B, n]; -1 for a root, and for no parent."""
    found = []
    for firsts, siblings in zip(next_token.tolist(), next_sibling.tolist(), strict=True):
        parents = [NONE] * len(firsts)
        for node, child in enumerate(firsts):
            while child != NONE:
                parents[child] = node
                child = siblings[child]
        found.append(parents)
    return torch.tensor(found, dtype=torch.long).view(next_token.shape)


def chain(count: int, nodes: int) -> Tensor:
    """The parents [B, n] of nodes that follow one another."""
    return torch.arange(NONE, nodes - 1).expand(count, nodes)


def verify_greedy(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    target_predict: Tensor,
) -> None:
    """From each root go down to the child that is the model's own choice, as long as there is one.

    candidates, links and target_predict (what the model says after each node) [B, n]. Fills
    accept_index [B, longest] with the rows gone through, accept_token_num [B] with their number
    less the root, and predicts [B * n] with the model's choice at each of these rows.
    """
    columns = (candidates, retrive_index, retrive_next_token, retrive_next_sibling, target_predict)
    requests = zip(*(column.tolist() for column in columns), strict=True)
    for request, (drafts, rows, firsts, siblings, said) in enumerate(requests):
        path = [ROOT]
        while len(path) < accept_index.shape[1]:
            child = firsts[path[-1]]
            while child != NONE and drafts[child] != said[path[-1]]:
                child = siblings[child]
            if child == NONE:
                break
            path.append(child)
        for step, node in enumerate(path):
            accept_index[request, step] = rows[node]
            predicts[rows[node]] = said[node]
        accept_token_num[request] = len(path) - 1


def last_accepted(
    accept_tokens: Tensor, accept_lens: Tensor, bonus_tokens: Tensor, accept_stride: int
) -> None:
    """Fill bonus_tokens [B] with the accept_lens[b]-th token of each row of accept_tokens.

    accept_tokens [B, stride].
    """
    rows = accept_tokens.reshape(-1, accept_stride)
    last = rows.gather(1, accept_lens.long().view(-1, 1) - 1)
    bonus_tokens.copy_(last.flatten())


def accepted_slots(
    accept_index: Tensor, out_cache_loc: Tensor, accept_out_cache_loc: Tensor
) -> None:
    """Pack the slots of accepted rows, which -1 pads, to the front of the last argument."""
    rows = accept_index.flatten()
    slots = out_cache_loc[rows[rows != NONE].long()]
    accept_out_cache_loc[: len(slots)] = slots


def move_slots(data_ptrs: Tensor, strides: Tensor, tgt_loc: Tensor, src_loc: Tensor) -> None:
    """Copy slots of pools onto other slots, in place.

    data_ptrs: the address of each pool; strides: bytes of a slot in each; slots [N].
    """
    if not len(src_loc):
        return
    target, source = tgt_loc.numpy(), src_loc.numpy()
    count = int(max(target.max(), source.max())) + 1
    for address, width in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        memory = (ctypes.c_uint8 * (count * width)).from_address(address)
        pool = np.frombuffer(memory, dtype=np.uint8).reshape(count, width)
        pool[target] = pool[source]


def slots_between(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """Pack the slots of positions start to end [B] of each request, one request after another."""
    table, at = _spans(req_pool_indices, start_offset, end_offset)
    out_cache_loc[: len(at)] = req_to_token[table, at].to(out_cache_loc.dtype)


def put_slots_between(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """The other way: write packed slots to positions start to end [B] of each request."""
    table, at = _spans(req_pool_indices, start_offset, end_offset)
    req_to_token[table, at] = out_cache_loc[: len(at)].to(req_to_token.dtype)


def slots_from(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    seq_lens: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
    topk: int,
    speculative_num_steps: int,
) -> None:
    """Pack the topk * steps slots of each request from position seq_lens [B] on."""
    end = seq_lens + topk * speculative_num_steps
    slots_between(req_pool_indices, req_to_token, seq_lens, end, out_cache_loc, pool_len)


def _spans(requests: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Request and position of each entry from start to end [B], packed."""
    lengths = (end - start).long()
    rows = requests.long().repeat_interleave(lengths)
    before = lengths.cumsum(0) - lengths
    return rows, torch.arange(len(rows)) + (start.long() - before).repeat_interleave(lengths)
