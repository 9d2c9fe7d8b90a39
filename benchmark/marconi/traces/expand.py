"""Token ids for traces that have only block ids: a fixed, seeded function of each id."""

from __future__ import annotations

import numpy as np

from traces.hashing import name_id
from traces.request import Request


def expand_block(id: int, block: int, vocab_size: int) -> list[int]:
    """The ``block`` tokens that stand for a block id, each from 0 to ``vocab_size`` - 1."""
    tokens: list[int] = np.random.default_rng(id).integers(0, vocab_size, block).tolist()
    return tokens


def expand_prompt(request: Request, block: int, vocab_size: int) -> list[int]:
    """The prompt's ``input_length`` tokens: the trace's own, or its blocks' expansions.

    Tokens beyond the last full block begin the block that prompt and output fill together, where
    the trace names it, so that a later prompt with that block extends this one exactly. Elsewhere
    they follow from session, length and last block, so that only requests with these three equal
    share them.
    """
    if request.input_tokens is not None:
        return list(request.input_tokens)
    return _sequence(request, block, vocab_size)[: request.input_length]


def expand_output(request: Request, block: int, vocab_size: int) -> list[int]:
    """The output's ``output_length`` tokens, which follow :func:`expand_prompt`'s."""
    if request.output_tokens is not None:
        return list(request.output_tokens)
    return _sequence(request, block, vocab_size)[request.input_length :]


def _sequence(request: Request, block: int, vocab_size: int) -> list[int]:
    total = request.input_length + request.output_length
    ids = [*request.prompt_ids, *request.output_ids]
    tokens = [token for id in ids for token in expand_block(id, block, vocab_size)]
    missing = total - len(tokens)
    if missing > 0:
        last = ids[-1] if ids else None
        filler = name_id("unnamed", request.session, request.input_length, last)
        tokens += expand_block(filler, missing, vocab_size)
    return tokens
