"""The order of service: who of the waiting requests goes first, as SGLang 0.5.23 sorts them.

Source of each order: ``sglang/srt/managers/schedule_policy.py``. Lengths are in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from sglang.srt.mem_cache.marconi.advice.load.arrivals import Arrival

#: With more requests waiting, lpm and hrrn serve in order of arrival; so many are touched.
MOST_MATCHED = 128
#: Scheduling passes from one touch of the waiting requests' prefixes to the next.
TOUCH_INTERVAL = 32
#: Of requests that share so many tokens that are not cached only the first keeps its place.
SHARED_TOKENS = 32


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in the queue.

    Attributes:
        since: seconds at which it came.
        prefilled: tokens that the server had prefilled by then, of all requests.
        matched: tokens of its prompt that were cached when it was last looked up.
    """

    arrival: Arrival
    since: float
    prefilled: int = 0
    matched: int = 0
    #: What an engine keeps of it between two looks.
    looked_up: object = field(default=None, repr=False)
    resumes: object = field(default=None, repr=False)

    @property
    def uncached(self) -> int:
        """Tokens that its prefill would compute."""
        return max(self.arrival.request.input_length - self.matched, 0)


Key = tuple[float, ...]


@dataclass(frozen=True)
class Schedule:
    """One value of ``--schedule-policy``.

    Attributes:
        matches: every waiting request is looked up before the queue is sorted.
        limited: it serves in order of arrival where more than ``MOST_MATCHED`` wait.
        key: the least goes first, equals as they stood; ``None`` leaves the queue as it is. Its
            arguments are the request and the tokens that were prefilled so far.
    """

    name: str
    matches: bool = False
    limited: bool = False
    key: Callable[[Waiting, int], Key] | None = None

    def active(self, waiting: int) -> Schedule:
        """What is done while so many requests wait."""
        return FCFS if self.limited and waiting > MOST_MATCHED else self

    def sort(self, queue: list[Waiting], prefilled: int, block: int) -> None:
        """Put the queue in order.

        Args:
            prefilled: tokens so far.
            block: tokens a block of the prompts' ids.
        """
        key = self.key
        if key is None:
            return
        behind = _shares_with_another(queue, block) if self.matches else set()
        queue.sort(key=lambda one: (inf,) if one in behind else key(one, prefilled))


def _shares_with_another(queue: Sequence[Waiting], block: int) -> set[Waiting]:
    """Those with little cached that begin as another such request before them does."""
    count = -(-SHARED_TOKENS // block)
    begun: set[tuple[int, ...]] = set()
    behind = set()
    for one in queue:
        if one.matched > SHARED_TOKENS:
            continue
        beginning = tuple(one.arrival.request.prompt_ids[:count])
        if len(beginning) < count:
            continue
        if beginning in begun:
            behind.add(one)
        begun.add(beginning)
    return behind


def _longest_prefix(one: Waiting, prefilled: int) -> Key:
    return (-one.matched,)


def _response_ratio(one: Waiting, prefilled: int) -> Key:
    """Waiting time over prefill time, both in tokens; equals by arrival."""
    if not one.uncached:
        return (-inf, one.arrival.index)
    return (-(prefilled - one.prefilled) / one.uncached, one.arrival.index)


def _shortest_prefill(one: Waiting, prefilled: int) -> Key:
    return (max(one.uncached, 1), one.since)


def _priority(one: Waiting, prefilled: int) -> Key:
    """Requests that continue a session before those that begin one: a trace has no priorities."""
    return (not one.arrival.turn, one.since)


FCFS = Schedule("fcfs")
SCHEDULES: dict[str, Schedule] = {
    one.name: one
    for one in (
        FCFS,
        Schedule("lpm", matches=True, limited=True, key=_longest_prefix),
        Schedule("hrrn", matches=True, limited=True, key=_response_ratio),
        Schedule("shortest-prefill-first", matches=True, key=_shortest_prefill),
        Schedule("priority", key=_priority),
    )
}
