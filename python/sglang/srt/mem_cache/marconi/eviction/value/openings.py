"""Numbers the openings that sessions share: system prompts and tools, by which applications differ.

What several sessions begin with is the only name that an application has in a prefix cache. Its
sessions may return far more often than others that look alike: a chat beside a job that sends each
prompt once. LHD tells applications apart likewise (Beckmann et al., "LHD: Improving Cache Hit Rate
by Maximizing Hit Density", NSDI 2018).
"""

from __future__ import annotations

from collections import OrderedDict

#: So many are told apart, and those that share none.
OPENINGS = 64
#: The number of all whose session began with nothing that was seen to be shared.
ALONE = 0


class Openings:
    """Numbers from 1 to :data:`OPENINGS` for the prefixes that sessions began at most recently."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[int, int] = OrderedDict()

    def number(self, id: int) -> tuple[int, bool]:
        """The number of the opening that ends with prefix ``id``; O(1).

        Returns:
            The number, and whether it is new: an opening that had it before has it no longer, but
            what its sessions left, and their later turns, count as the new one's.
        """
        known = self._numbers.get(id)
        if known is not None:
            self._numbers.move_to_end(id)
            return known, False
        number = len(self._numbers) + 1
        if number > OPENINGS:
            _, number = self._numbers.popitem(last=False)
        self._numbers[id] = number
        return number, True
