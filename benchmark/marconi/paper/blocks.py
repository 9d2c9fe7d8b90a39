"""vLLM+'s tree of fixed blocks: every block of every sequence is a node with its own state."""

from __future__ import annotations

from collections.abc import Callable

from paper.records import Lookup
from paper.sequences import TOKEN_BYTES, shared_bytes, token_count


class Block:
    """Up to one block of tokens. Only a full block, or the root, has children.

    ``partials`` holds those children that are not full, in the order of ``children``: few, where
    the children of a root can be thousands.
    """

    __slots__ = ("children", "last_access", "parent", "partials", "queued", "start", "tokens")

    def __init__(self, parent: Block | None, tokens: bytes, last_access: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.last_access = last_access
        self.children: dict[bytes, Block] = {}
        self.partials: dict[bytes, Block] = {}
        self.queued = False
        self.start: int = 0 if parent is None else parent.end

    @property
    def own_tokens(self) -> int:
        """Tokens of this block alone."""
        return len(self.tokens) // TOKEN_BYTES

    @property
    def end(self) -> int:
        """Tokens from the root to the end of this block."""
        return self.start + len(self.tokens) // TOKEN_BYTES

    def path(self) -> bytes:
        """Every token from the root to the end of this block, encoded."""
        parts, block = [], self
        while block.parent is not None:
            parts.append(block.tokens)
            block = block.parent
        return b"".join(reversed(parts))


class BlockTree:
    """The block tree of specification 8; calls ``changed`` for a block that may be a leaf now."""

    def __init__(self, block_tokens: int, changed: Callable[[Block], None]) -> None:
        self.root = Block(None, b"", 0)
        self.nodes = 0
        self.kv_tokens = 0
        self._block_bytes = block_tokens * TOKEN_BYTES
        self._changed = changed

    def lookup(self, query: bytes, now: int) -> Lookup:
        """Descend by whole blocks; one partial block may end the walk, unstamped."""
        block, at, accessed = self.root, 0, 1
        block.last_access = now
        while True:
            child = block.children.get(query[at : at + self._block_bytes])
            if child is None or len(child.tokens) < self._block_bytes:
                break
            block, at, accessed = child, at + self._block_bytes, accessed + 1
            block.last_access = now
        for partial in block.partials.values():
            if query.startswith(partial.tokens, at):
                at += len(partial.tokens)
                accessed += 1
                break
        matched = at // TOKEN_BYTES
        return Lookup(matched, matched, matched, matched, accessed)

    def store(self, query: bytes, now: int) -> None:
        """Add every block of ``query``, topping up a partial block in place; stamp all visited."""
        block, at = self.root, 0
        block.last_access = now
        while at < len(query):
            child = self._descend(block, query, at)
            if child is not None:
                at += len(child.tokens)
            elif block.parent is not None and len(block.tokens) < self._block_bytes:
                at += self._top_up(block, query, at)
                continue
            else:
                child = self._add(block, query[at : at + self._block_bytes], now)
                at += len(child.tokens)
            block = child
            block.last_access = now
        if block.parent is not None:
            self._changed(block)

    def remove_leaf(self, block: Block) -> None:
        """Take a block without children out, with its state and KV."""
        parent = block.parent
        if parent is None:
            raise ValueError("the root cannot be evicted")
        del parent.children[block.tokens]
        parent.partials.pop(block.tokens, None)
        block.parent = None
        self.nodes -= 1
        self.kv_tokens -= block.own_tokens
        if parent.parent is not None:
            self._changed(parent)

    def _descend(self, block: Block, query: bytes, at: int) -> Block | None:
        """The child that matches fully, if no other child matches further."""
        full = block.children.get(query[at : at + self._block_bytes])
        if full is not None and len(full.tokens) == self._block_bytes:
            return full
        best: Block | None = None
        for partial in block.partials.values():
            if query.startswith(partial.tokens, at) and (
                best is None or len(partial.tokens) > len(best.tokens)
            ):
                best = partial
        if best is None:
            return None
        for child in block.children.values():
            if shared_bytes(query, at, child.tokens) > len(best.tokens):
                return None
        return best

    def _top_up(self, block: Block, query: bytes, at: int) -> int:
        """Fill a partial block; as its key changes it moves to the end of its parent's order."""
        parent = block.parent
        assert parent is not None
        added = query[at : at + self._block_bytes - len(block.tokens)]
        del parent.children[block.tokens]
        del parent.partials[block.tokens]
        block.tokens += added
        self._file(parent, block)
        self.kv_tokens += token_count(added)
        return len(added)

    def _add(self, parent: Block, tokens: bytes, now: int) -> Block:
        block = Block(parent, tokens, now)
        self._file(parent, block)
        self.nodes += 1
        self.kv_tokens += token_count(tokens)
        return block

    def _file(self, parent: Block, block: Block) -> None:
        parent.children[block.tokens] = block
        if len(block.tokens) < self._block_bytes:
            parent.partials[block.tokens] = block
