"""Memory of evicted prefixes, as hashes, so that a lost hit can be told from one that never was.

Token sequences are remembered as a chain of 64-token block hashes. A prefix that is deleted leaves
its blocks behind, and its exact end where it held a state. Memory is bounded: the oldest blocks are
forgotten first, after which a loss counts as never admitted.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

BLOCK_TOKENS = 64
_TOKEN_BYTES = 8


@dataclass(frozen=True, slots=True)
class PrefixDigest:
    """A token sequence: the chain hash of its whole blocks and the tokens that fill no block.

    Attributes:
        chain: hash of all whole blocks, in order.
        tail: the remaining tokens, 8 bytes each, fewer than ``BLOCK_TOKENS`` of them.
        length: tokens in all.
    """

    chain: bytes
    tail: bytes
    length: int


def root_digest(namespace: str) -> PrefixDigest:
    """The empty sequence of a namespace (a LoRA adapter, a cache salt)."""
    return PrefixDigest(_hash(b"", namespace.encode()), b"", 0)


def extend(
    digest: PrefixDigest, tokens: Sequence[int]
) -> tuple[PrefixDigest, list[tuple[bytes, bytes]]]:
    """``digest`` followed by ``tokens``.

    Returns:
        The longer digest, and the links (chain before, chain after) of the blocks that
        ``tokens`` completed.
    """
    data = digest.tail + array("q", tokens).tobytes()
    chain = digest.chain
    links = []
    width = BLOCK_TOKENS * _TOKEN_BYTES
    whole = len(data) - len(data) % width
    for at in range(0, whole, width):
        following = _hash(chain, data[at : at + width])
        links.append((chain, following))
        chain = following
    return PrefixDigest(chain, data[whole:], digest.length + len(tokens)), links


def _hash(chain: bytes, data: bytes) -> bytes:
    return blake2b(data, key=chain, digest_size=16).digest()


@dataclass(slots=True)
class _Block:
    """What was seen to follow one chain of blocks: a next block, and tails at which states lay."""

    seen: bool
    state_tails: dict[bytes, int]


@dataclass(frozen=True, slots=True)
class GhostHit:
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
    200 bytes.
    """

    def __init__(self, max_blocks: int = 65536) -> None:
        if max_blocks < 1:
            raise ValueError(f"max_blocks is {max_blocks}; allowed is 1 or more")
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()

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
        for _, after in links:
            self._block(after).seen = True
        if had_state:
            self._block(end.chain).state_tails[end.tail] = owner
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def look_up(self, alive: PrefixDigest, tokens: Sequence[int]) -> GhostHit:
        """How far evicted prefixes lead from ``alive``, whose KV still lives, along ``tokens``."""
        width = BLOCK_TOKENS * _TOKEN_BYTES
        data = alive.tail + array("q", tokens).tobytes()
        base = alive.length - len(alive.tail) // _TOKEN_BYTES
        chain, at = alive.chain, 0
        state_depth = kv_depth = state_owner = 0
        while True:
            block = self._blocks.get(chain)
            if block is not None:
                for tail, owner in block.state_tails.items():
                    if data.startswith(tail, at):
                        depth = base + (at + len(tail)) // _TOKEN_BYTES
                        if depth > max(alive.length, state_depth):
                            state_depth, state_owner = depth, owner
            if at + width > len(data):
                break
            chain = _hash(chain, data[at : at + width])
            following = self._blocks.get(chain)
            if following is None or not following.seen:
                break
            at += width
            kv_depth = base + at // _TOKEN_BYTES
        return GhostHit(state_depth, max(kv_depth, state_depth), state_owner)

    def clear(self) -> None:
        self._blocks.clear()

    def _block(self, chain: bytes) -> _Block:
        block = self._blocks.get(chain)
        if block is None:
            block = self._blocks[chain] = _Block(False, {})
        else:
            self._blocks.move_to_end(chain)
        return block
