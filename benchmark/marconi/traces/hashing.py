"""Block ids of token sequences: equal exactly as long as the sequences are equal."""

from __future__ import annotations

import hashlib

from traces.request import Request
from traces.tokens import TOKEN_BYTES, Tokens, pack, token_count, unpack

_DIGEST_BYTES = 8


def block_ids(tokens: Tokens, block: int) -> list[int]:
    """One id for each full block of ``block`` tokens.

    Each id is 63 bits of a BLAKE2b hash of the block and the hash before it, without any seed: the
    first k ids of two sequences are equal exactly when their first k blocks are (up to a collision,
    which 100 million blocks see with a chance of 1 in 1,800).

    Raises:
        OverflowError, TypeError: a token is no unsigned 32-bit integer.
    """
    data = pack(tokens)
    step = block * TOKEN_BYTES
    digest = b""
    found = []
    for end in range(step, len(data) + 1, step):
        digest = hashlib.blake2b(
            digest + data[end - step : end], digest_size=_DIGEST_BYTES
        ).digest()
        found.append(int.from_bytes(digest, "big") >> 1)
    return found


def name_id(*parts: object) -> int:
    """A 63-bit id that is a fixed function of the parts' text."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest(), "big") >> 1


def token_request(
    timestamp_ms: float,
    session: str | None,
    prompt: Tokens,
    output: Tokens,
    block: int,
    *,
    keep_tokens: bool = True,
) -> Request:
    """A request made of its tokens, with the ids of the blocks that they fill.

    Raises:
        ValueError: the prompt is empty.
        OverflowError, TypeError: a token is no unsigned 32-bit integer.
    """
    prompt_data, output_data = pack(prompt), pack(output)
    length = token_count(prompt_data)
    if not length:
        raise ValueError("the prompt has no tokens")
    known = block_ids(prompt_data + output_data, block)
    cut = length // block
    return Request(
        timestamp_ms=timestamp_ms,
        session=session,
        input_length=length,
        output_length=token_count(output_data),
        prompt_ids=tuple(known[:cut]),
        output_ids=tuple(known[cut:]),
        input_tokens=unpack(prompt) if keep_tokens else None,
        output_tokens=unpack(output) if keep_tokens else None,
    )
