"""Which request will resume at a cached state: next uses, kept up while states come and go."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from policies.prompt_tree import PromptNode, PromptTree, first_after


@dataclass(slots=True, eq=False)
class CachedState:
    """A cached state on the path of some prompt.

    Attributes:
        place: the node of the prompt tree that it lies in or at the end of.
        depth: in blocks from the root.
        next_use: the first request to come that would resume here, were nothing to change;
            ``None`` if there is none.
    """

    id: int
    place: PromptNode
    depth: int
    next_use: int | None = None


class Foresight:
    """The next use of every cached state: the first request to come that passes it and no deeper.

    A state that a deeper one supersedes has no use while the deeper one lives, and gets one when
    that is evicted. States yet to be made do not change a next use as long as nothing is evicted:
    a request's lie below the one that it resumes at, so they are never on the path of an earlier
    user of a state above.
    """

    def __init__(self, tree: PromptTree) -> None:
        self._tree = tree
        self._states: dict[int, CachedState] = {}
        self._at: dict[PromptNode, list[CachedState]] = {}
        self._due: defaultdict[int, set[int]] = defaultdict(set)
        self._now = -1

    def advance(self, now: int) -> list[int]:
        """Request ``now`` arrives. Returns ids of states whose next use is another one now."""
        due: list[int] = []
        for request in range(self._now + 1, now + 1):
            due += sorted(self._due.pop(request, ()))
        self._now = now
        for id in due:
            self._foresee(self._states[id])
        return due

    def add(self, id: int, place: PromptNode, depth: int) -> list[int]:
        """A state was cached. Returns ids of states whose next use may be another one now."""
        state = self._states[id] = CachedState(id, place, depth)
        above = self._above(state)
        self._at.setdefault(place, []).append(state)
        return self._foresee_all(state, above)

    def remove(self, id: int) -> list[int]:
        """A state is no longer cached. Returns as :meth:`add` does."""
        state = self._states.pop(id, None)
        if state is None:
            return []
        self._forget(state)
        here = self._at[state.place]
        here.remove(state)
        if not here:
            del self._at[state.place]
        return self._foresee_all(self._above(state))

    def next_use(self, id: int) -> int | None:
        """See :attr:`CachedState.next_use`; ``None`` also for what lies on no prompt's path."""
        state = self._states.get(id)
        return None if state is None else state.next_use

    def _above(self, state: CachedState) -> CachedState | None:
        """The deepest cached state above, in blocks."""
        node: PromptNode | None = state.place
        while node is not None:
            shallower = [other for other in self._at.get(node, ()) if other.depth < state.depth]
            if shallower:
                return max(shallower, key=lambda other: other.depth)
            node = node.parent
        return None

    def _foresee_all(self, *states: CachedState | None) -> list[int]:
        there = [state for state in states if state is not None]
        for state in there:
            self._foresee(state)
        return [state.id for state in there]

    def _foresee(self, state: CachedState) -> None:
        self._forget(state)
        state.next_use = self._first_use(state)
        if state.next_use is not None:
            self._due[state.next_use].add(state.id)

    def _forget(self, state: CachedState) -> None:
        if state.next_use is not None:
            self._due[state.next_use].discard(state.id)

    def _first_use(self, state: CachedState) -> int | None:
        if any(other.depth > state.depth for other in self._at[state.place]):
            return None
        best: int | None = None
        finished = []
        stack = [iter((state.place,))]
        while stack:
            node = next(stack[-1], None)
            # Siblings come in the order of their first requests.
            if node is None or (best is not None and node.passing[0] >= best):
                stack.pop()
                continue
            if node is not state.place and node in self._at:
                continue
            soonest = first_after(node.passing, self._now)
            if soonest is None:
                finished.append(node)
            elif best is None or soonest < best:
                ending = first_after(node.ending, self._now)
                if ending is not None and (best is None or ending < best):
                    best = ending
                stack.append(iter(node.children.values()))
        for node in finished:
            node.cut()
        return best
