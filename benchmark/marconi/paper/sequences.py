"""Token sequences as bytes, so that comparing two of them is one memory comparison.

A token is four bytes, little-endian. Offsets named ``at`` count bytes, everything else tokens.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOKEN_BYTES = 4

Tokens = Sequence[int] | NDArray[np.uint32] | bytes
"""Token ids, or what ``encode`` made of them."""


def encode(tokens: Tokens) -> bytes:
    """The bytes of a token sequence; bytes are taken to be encoded already.

    Raises:
        ValueError: if a token is no unsigned 32-bit integer, or the bytes are no whole tokens.
    """
    if isinstance(tokens, bytes):
        if len(tokens) % TOKEN_BYTES:
            raise ValueError(f"{len(tokens)} bytes are no whole number of 4-byte tokens")
        return tokens
    if isinstance(tokens, np.ndarray):
        if tokens.dtype == np.uint32:
            return tokens.astype("<u4", copy=False).tobytes()
        return encode(tokens.tolist())
    try:
        words = array("I", tokens)
    except (OverflowError, TypeError) as error:
        raise ValueError(f"tokens must be integers from 0 to 2**32 - 1: {error}") from error
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def token_count(sequence: bytes) -> int:
    """How many tokens an encoded sequence holds."""
    return len(sequence) // TOKEN_BYTES


def shared_bytes(query: bytes, at: int, segment: bytes) -> int:
    """Bytes that ``segment`` shares with ``query`` from ``at`` on, in whole tokens."""
    low, high = 0, min(len(segment), len(query) - at) // TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        begin, end = low * TOKEN_BYTES, middle * TOKEN_BYTES
        if query.startswith(segment[begin:end], at + begin):
            low = middle
        else:
            high = middle - 1
    return low * TOKEN_BYTES


def path_hash(path: bytes) -> str:
    """A short name of a path: the first 16 hex digits of the SHA-256 of its encoded tokens."""
    return hashlib.sha256(path).hexdigest()[:16]
