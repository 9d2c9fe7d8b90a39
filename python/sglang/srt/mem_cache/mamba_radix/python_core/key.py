"""SGLang's radix key of plain tokens, with its length at hand and whole nodes compared at once."""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.radix_cache import RadixKey


class PlainKey(RadixKey):
    """Equal to the key that it is made from, in whatever a tree core does with it.

    A walk down the tree asks for the length of a key some ten times a node, and finds most nodes
    matching from end to end.
    """

    __slots__ = ("_length",)

    def __init__(
        self,
        token_ids: Any,
        extra_key: str | None = None,
        limit: int | None = None,
        cache_salt: str | None = None,
    ) -> None:
        super().__init__(token_ids, extra_key, limit=limit, cache_salt=cache_salt)
        self._length: int = super()._raw_len()

    def _raw_len(self) -> int:
        return self._length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, idx: int | slice) -> RadixKey:
        part = super().__getitem__(idx)
        return PlainKey(part.token_ids, part.extra_key, cache_salt=part.cache_salt)

    def match_at(self, other: RadixKey, offset: int, page_size: int = 1) -> int:
        reaches = type(other) is PlainKey and 0 <= offset <= other._length - self._length
        if page_size == 1 and reaches:
            mine, theirs = self.token_ids, other.token_ids
            whole = self.limit is None and theirs[offset : offset + self._length] == mine
            if whole and self._is_beside(other):
                return self._length
        matched: int = super().match_at(other, offset, page_size)
        return matched

    def _is_beside(self, other: PlainKey) -> bool:
        return bool(self.extra_key == other.extra_key and self.cache_salt == other.cache_salt)


def plain_key(key: RadixKey) -> RadixKey:
    """``key``, faster if it is one of plain tokens."""
    if key.is_bigram or type(key) is not RadixKey:
        return key
    return PlainKey(key.token_ids, key.extra_key, key.limit, key.cache_salt)
