"""Memory of evicted prefixes, as hashes, so that a lost hit can be told from one that never was.

Token sequences are remembered as a chain of 64-token block hashes. A prefix that is deleted leaves
its blocks behind, and its exact end where it held a state. Memory is bounded: the oldest blocks are
forgotten first, and of many ends within one block the oldest, after which a loss counts as never
admitted.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from sglang.srt.mem_cache.marconi.tree import Namespace

BLOCK_TOKENS = 64
#: Ends within one block that are remembered. Prompts shorter than a block all end in the first,
#: which is never the oldest.
MOST_TAILS = 4096
_TOKEN_BYTES = 8

_T = TypeVar("_T")


class PrefixDigest(NamedTuple):
    """A token sequence: the chain hash of its whole blocks and the tokens that fill no block.

    Attributes:
        chain: hash of all whole blocks, in order.
        tail: the remaining tokens, 8 bytes each, fewer than ``BLOCK_TOKENS`` of them.
        length: tokens in all.
    """

    chain: int
    tail: bytes
    length: int


def root_digest(namespace: Namespace) -> PrefixDigest:
    """The empty sequence of a namespace."""
    return PrefixDigest(hash(namespace), b"", 0)


def extend(
    digest: PrefixDigest, tokens: Sequence[int]
) -> tuple[PrefixDigest, list[tuple[int, int]]]:
    """``digest`` followed by ``tokens``.

    Returns:
        The longer digest, and of each block that ``tokens`` completed its own hash and the chain
        that ends with it.
    """
    data = digest.tail + _as_bytes(tokens)
    chain = digest.chain
    links = []
    width = BLOCK_TOKENS * _TOKEN_BYTES
    whole = len(data) - len(data) % width
    for at in range(0, whole, width):
        own = hash(data[at : at + width])
        chain = hash((chain, own))
        links.append((own, chain))
    return PrefixDigest(chain, data[whole:], digest.length + len(tokens)), links


def _as_bytes(tokens: Sequence[int]) -> bytes:
    if isinstance(tokens, array) and tokens.typecode == "q":
        return tokens.tobytes()
    return array("q", tokens).tobytes()


@dataclass(slots=True)
class _Block:
    """What was seen to follow one chain of blocks.

    Attributes:
        number: how many blocks the chain has.
        own: the hash of its last block, if that was evicted.
        state_tails: tails at which states lay, and their owners; ``None`` without any.
    """

    number: int
    own: int | None = None
    state_tails: dict[bytes, int] | None = None


class GhostHit(NamedTuple):
    """How far a sequence runs along evicted prefixes, in tokens from the root.

    Attributes:
        state_depth: deepest evicted state on it, 0 if none.
        kv_depth: end of its last block whose KV was evicted, 0 if none.
        state_owner: as given to :meth:`Ghosts.add` with the state at ``state_depth``.
    """

    state_depth: int
    kv_depth: int
    state_owner: int = 0


class Ghosts:
    """A bounded set of evicted prefixes.

    ``add`` is O(tokens added); ``look_up`` is O(blocks that are found + 1). Each block costs about
    300 bytes, and each state in it a hundred and its tail. Hashes are Python's own: they differ
    from process to process, answers do not.
    """

    def __init__(
        self, max_blocks: int = 65536, on_forgotten: Callable[[int], None] | None = None
    ) -> None:
        """
        Args:
            max_blocks: that are remembered.
            on_forgotten: told of the owner of each state that is forgotten for want of room.
        """
        if max_blocks < 1:
            raise ValueError(f"max_blocks is {max_blocks}; allowed is 1 or more")
        self._max_blocks = max_blocks
        self._on_forgotten = on_forgotten
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        self._evicted_blocks: Counter[int] = Counter()
        self._tail_starts: Counter[tuple[int, bytes]] = Counter()

    def __len__(self) -> int:
        return len(self._blocks)

    def add(
        self, parent: PrefixDigest, tokens: Sequence[int], had_state: bool, owner: int = 0
    ) -> None:
        """Remember that the KV of ``tokens``, which followed ``parent``, is gone.

        Args:
            had_state: a state ever lay at the end of ``tokens``.
            owner: whose it was.
        """
        end, links = extend(parent, tokens)
        number = end.length // BLOCK_TOKENS
        for ahead, (own, chain) in enumerate(links, 1 - len(links)):
            block = self._block(chain, number + ahead)
            if block.own is None:
                block.own = own
                self._evicted_blocks[own] += 1
        if had_state:
            block = self._block(end.chain, number)
            tails = block.state_tails
            if tails is None:
                # Most blocks end inside a prefix.
                tails = block.state_tails = {}
            if tails.pop(end.tail, None) is None:
                self._tail_starts[number, end.tail[:_TOKEN_BYTES]] += 1
            tails[end.tail] = owner
            if len(tails) > MOST_TAILS:
                oldest = next(iter(tails))
                self._forget_tail(block, oldest, tails.pop(oldest))
        while len(self._blocks) > self._max_blocks:
            self._forget(self._blocks.popitem(last=False)[1])

    def may_lead_on(self, number: int, tokens: Sequence[int]) -> bool:
        """Whether a sequence may follow evicted prefixes from within its block ``number`` on.

        O(1), for what comes before need not be known. ``False`` means that :meth:`look_up` would
        find nothing.

        Args:
            number: how many whole blocks come before.
            tokens: of that block.
        """
        data = _as_bytes(tokens)
        return (
            hash(data) in self._evicted_blocks or (number, data[:_TOKEN_BYTES]) in self._tail_starts
        )

    def look_up(self, alive: PrefixDigest, tokens: Sequence[int]) -> GhostHit:
        """How far evicted prefixes lead from ``alive``, whose KV still lives, along ``tokens``."""
        width = BLOCK_TOKENS * _TOKEN_BYTES
        data = alive.tail + _as_bytes(tokens)
        base = alive.length - len(alive.tail) // _TOKEN_BYTES
        chain, at = alive.chain, 0
        state_depth = kv_depth = state_owner = 0
        while True:
            block = self._blocks.get(chain)
            if block is not None and block.state_tails is not None:
                for tail in _met(block.state_tails, data, at):
                    depth = base + (at + len(tail)) // _TOKEN_BYTES
                    if depth > max(alive.length, state_depth):
                        state_depth, state_owner = depth, block.state_tails[tail]
            if at + width > len(data):
                break
            chain = hash((chain, hash(data[at : at + width])))
            following = self._blocks.get(chain)
            if following is None or following.own is None:
                break
            at += width
            kv_depth = base + at // _TOKEN_BYTES
        return GhostHit(state_depth, max(kv_depth, state_depth), state_owner)

    def clear(self) -> None:
        self._blocks.clear()
        self._evicted_blocks.clear()
        self._tail_starts.clear()

    def _block(self, chain: int, number: int) -> _Block:
        block = self._blocks.get(chain)
        if block is None:
            block = self._blocks[chain] = _Block(number)
        else:
            self._blocks.move_to_end(chain)
        return block

    def _forget(self, block: _Block) -> None:
        if block.own is not None:
            _take_one(self._evicted_blocks, block.own)
        for tail, owner in (block.state_tails or {}).items():
            self._forget_tail(block, tail, owner)

    def _forget_tail(self, block: _Block, tail: bytes, owner: int) -> None:
        _take_one(self._tail_starts, (block.number, tail[:_TOKEN_BYTES]))
        if self._on_forgotten is not None:
            self._on_forgotten(owner)


def _met(tails: Collection[bytes], data: bytes, at: int) -> list[bytes]:
    """Those of ``tails`` that ``data`` goes on with from ``at``, in O(BLOCK_TOKENS)."""
    if len(tails) <= BLOCK_TOKENS:
        return [tail for tail in tails if data.startswith(tail, at)]
    ends = range(at, min(at + BLOCK_TOKENS * _TOKEN_BYTES, len(data) + 1), _TOKEN_BYTES)
    return [data[at:end] for end in ends if data[at:end] in tails]


def _take_one(counts: Counter[_T], key: _T) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
