"""The states that requests give to the tree, and which go once their request gave its next one."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.admission.follow_ups import FollowUps
from sglang.srt.mem_cache.marconi.admission.rules import Admission, OwnState


@dataclass
class LastGiven:
    """The deepest state that one running request gave to the tree.

    Attributes:
        node: id of the node that holds it, ``None`` where there is none.
        depth: from the root to it, in the unit of the admission.
        at_stop: it lies where the admission wanted one.
    """

    node: int | None = None
    depth: int = 0
    at_stop: bool = False


class GivenStates:
    """Judges a request's state once its next one lies deeper in the tree.

    The events of a tree come in the order in which they happen; ids are those of its nodes.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._not_reused: set[int] = set()
        self._follow_ups = FollowUps(admission)

    # -- events of the tree

    def clear(self) -> None:
        """The tree was emptied."""
        self._not_reused.clear()
        self._follow_ups.clear()

    def looked_up(self, node: int) -> None:
        """Some request found the state of ``node``."""
        self._not_reused.discard(node)
        self._follow_ups.seen(node)

    def created(self, node: int) -> None:
        """A state was put at the end of ``node``, or put there again."""
        self._follow_ups.seen(node)

    def parted(self, lower: int) -> None:
        """A prompt left the path to ``lower`` between its two last nodes."""
        self._follow_ups.parted(lower)

    def deleted(self, node: int) -> None:
        """``node`` left the tree."""
        self._follow_ups.forget(node)

    def left(self, node: int) -> None:
        """The state of ``node`` left the device."""
        self._not_reused.discard(node)

    # -- what requests give

    def give(
        self, run: LastGiven, node: int, depth: int, *, created: bool, at_stop: bool
    ) -> LastGiven | None:
        """A request gave the state of ``node`` to the tree.

        Args:
            run: the request's record, brought up to date.
            created: the state is the request's; another request's lay there otherwise.
            at_stop: the admission wanted one there.

        Returns:
            The request's state before it, to be judged by :meth:`takes_back`.
        """
        former = LastGiven(run.node, run.depth, run.at_stop)
        if created:
            run.node, run.depth, run.at_stop = node, depth, at_stop
            self._not_reused.add(node)
        else:
            run.node = None
        return None if former.node is None or former.node == node else former

    def takes_back(self, former: LastGiven, children: int, last: int | None = None) -> bool:
        """Whether the tree is to give the state of ``former`` up again, its KV kept.

        Args:
            children: prefixes that go on from it; 0 where it is gone or cannot leave.
            last: the node of the request's last state, if ``former`` is the end of its prompt.
        """
        assert former.node is not None
        reused = former.node not in self._not_reused
        self._not_reused.discard(former.node)
        if not children:
            return False
        own = OwnState(former.depth, former.at_stop, reused, children, prompt_end=last is not None)
        if last is not None and not own.shared:
            self._follow_ups.watch(former.node, last)
        return self._admission.takes_back(own)
