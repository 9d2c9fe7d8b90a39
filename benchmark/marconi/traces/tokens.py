"""Token ids as bytes, four each, little-endian; importing this loads no model library."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

TOKEN_BYTES = 4

Tokens = Sequence[int] | bytes
"""Token ids, or what ``pack`` made of them."""


def pack(tokens: Tokens) -> bytes:
    """The bytes of token ids; bytes are taken to be packed already.

    Raises:
        OverflowError, TypeError: an id is no unsigned 32-bit integer.
    """
    if isinstance(tokens, bytes):
        return tokens
    words = array("I", tokens)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def unpack(tokens: Tokens) -> tuple[int, ...]:
    """The token ids."""
    if not isinstance(tokens, bytes):
        return tuple(tokens)
    words = array("I", tokens)
    if sys.byteorder == "big":
        words.byteswap()
    return tuple(words)


def token_count(packed: bytes) -> int:
    """How many tokens packed bytes hold."""
    return len(packed) // TOKEN_BYTES
