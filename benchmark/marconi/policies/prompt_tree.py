"""All prompts of a trace as one radix tree that knows which requests pass through each node."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class PromptNode:
    """A run of blocks that the same prompts share.

    Every prompt that passes through its first block passes through its last, because nodes are
    split where prompts part and where they end.

    Attributes:
        ids: its own blocks.
        end: blocks from the root to its end.
        passing: requests whose prompt contains it, ascending.
        ending: requests whose prompt ends with it, ascending.
        children: by their first block, in the order of their first requests.
    """

    __slots__ = ("children", "end", "ending", "ids", "parent", "passing")

    def __init__(self, ids: tuple[int, ...], end: int, parent: PromptNode | None) -> None:
        self.ids, self.end, self.parent = ids, end, parent
        self.children: dict[int, PromptNode] = {}
        self.passing: list[int] = []
        self.ending: list[int] = []

    @property
    def start(self) -> int:
        return self.end - len(self.ids)

    def cut(self) -> None:
        """Take it out of the tree, with all below: no request to come passes it."""
        if self.parent is not None:
            self.parent.children.pop(self.ids[0], None)


class PromptTree:
    """Built once from prompts in order of arrival; memory grows with turns, not with tokens."""

    def __init__(self) -> None:
        self.root = PromptNode((), 0, None)

    def add(self, request: int, prompt: tuple[int, ...]) -> int:
        """Enter the prompt of ``request``, in blocks; numbers ascend from call to call.

        Returns:
            Blocks that no earlier prompt has.
        """
        node, at, new = self.root, 0, 0
        node.passing.append(request)
        while at < len(prompt):
            child = node.children.get(prompt[at])
            if child is None:
                new = len(prompt) - at
                child = PromptNode(prompt[at:], len(prompt), node)
                node.children[prompt[at]] = child
            else:
                shared = shared_length(child.ids, prompt, at)
                if shared < len(child.ids):
                    child = self._split(child, shared)
            child.passing.append(request)
            node, at = child, child.end
        node.ending.append(request)
        return new

    def descend(self, node: PromptNode, depth: int, ids: Sequence[int]) -> PromptNode | None:
        """Where ``ids`` lead from the place ``depth`` in ``node``; ``None`` off all prompts."""
        at = 0
        while at < len(ids):
            if depth == node.end:
                child = node.children.get(ids[at])
                if child is None:
                    return None
                node = child
            offset = depth - node.start
            step = min(len(node.ids) - offset, len(ids) - at)
            if node.ids[offset : offset + step] != tuple(ids[at : at + step]):
                return None
            at += step
            depth += step
        return node

    @staticmethod
    def _split(lower: PromptNode, length: int) -> PromptNode:
        """Put a node of the first ``length`` blocks of ``lower`` above it."""
        parent = lower.parent
        assert parent is not None
        upper = PromptNode(lower.ids[:length], lower.start + length, parent)
        upper.passing = list(lower.passing)
        upper.children[lower.ids[length]] = lower
        parent.children[upper.ids[0]] = upper
        lower.ids, lower.parent = lower.ids[length:], upper
        return upper


def shared_length(ids: tuple[int, ...], prompt: tuple[int, ...], at: int) -> int:
    """How many of ``ids`` the prompt goes on with from ``at``."""
    if prompt[at : at + len(ids)] == ids:
        return len(ids)
    pairs = zip(ids, prompt[at : at + len(ids)], strict=False)
    return next(
        (i for i, (ours, theirs) in enumerate(pairs) if ours != theirs),
        min(len(ids), len(prompt) - at),
    )


def first_after(requests: list[int], now: int) -> int | None:
    """The first of ascending ``requests`` that comes after ``now``."""
    at = bisect_right(requests, now)
    return requests[at] if at < len(requests) else None
