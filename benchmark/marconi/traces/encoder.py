"""Tokens of text that grows: a piece of text that was seen before is not tokenized again."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate, chain, pairwise
from typing import Any

#: A stretch without special tokens is cut after so many characters, at the next word.
CHUNK = 2000
#: Characters of text whose tokens are kept.
KEPT = 1 << 25
#: How much of a text is tokenized once more, to see that its pieces give the same tokens.
_CHECKED = 1 << 17
# Tokenizers that split text into words first never join tokens across these places.
_BETWEEN_WORDS = re.compile(r"(?<=\n)(?=\S)|(?<=\S)(?= [A-Za-z])")


class Encoder:
    """A Hugging Face tokenizer that remembers the tokens of pieces.

    Text is cut before the tokenizer's special tokens, which no other token crosses, and long
    stretches between two words. A prompt that repeats the one before it so costs the tokenizer what
    is new, and a chunk more at most. Whether pieces give the tokens of the whole is checked on the
    first text of each kind; a tokenizer for which they do not is given whole texts.

    Attributes:
        tokenizer: the tokenizer itself.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._marks = _special_tokens(tokenizer)
        self._known: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._held = 0
        # For texts cut at special tokens alone, and for those cut between words too.
        self._exact: dict[bool, bool] = {}

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of the text alone, without special tokens around it."""
        starts = list(self._starts(text))
        pieces = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
        if len(pieces) > 1:
            between_words = any(not self._marks.match(piece) for piece in pieces[1:])
            if between_words not in self._exact:
                self._exact[between_words] = self._same(pieces)
            if not self._exact[between_words]:
                return self._whole(text)
        return tuple(chain.from_iterable(map(self._piece, pieces)))

    def _starts(self, text: str) -> Iterator[int]:
        marks = [0, *(m.start() for m in self._marks.finditer(text) if m.start()), len(text)]
        for start, end in pairwise(marks):
            yield start
            while cut := _BETWEEN_WORDS.search(text, start + CHUNK, end):
                if cut.start() == end:
                    break
                start = cut.start()
                yield start

    def _same(self, pieces: list[str]) -> bool:
        if not getattr(self.tokenizer, "is_fast", False):
            return False
        ends = accumulate(map(len, pieces))
        some = [piece for piece, end in zip(pieces, ends, strict=True) if end <= _CHECKED]
        some = some if len(some) > 1 else pieces[:2]
        return self._whole("".join(some)) == tuple(chain.from_iterable(map(self._piece, some)))

    def _piece(self, piece: str) -> tuple[int, ...]:
        tokens = self._known.get(piece)
        if tokens is not None:
            self._known.move_to_end(piece)
            return tokens
        tokens = self._known[piece] = self._whole(piece)
        self._held += len(piece)
        while self._held > KEPT:
            self._held -= len(self._known.popitem(last=False)[0])
        return tokens

    def _whole(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches the tokens that a text is split at first, but for those that swallow spaces."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    marks = [token.content for token in added if not (token.lstrip or token.normalized)]
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or "(?!)")
