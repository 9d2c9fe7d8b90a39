"""Which states of one request enter the cache: all that SGLang makes, or only those worth a slot.

SGLang gives the tree a state at the end of every prefill chunk, at the end of the prompt and at the
last tracked depth of the output. Marconi's judicious admission (section 4.1 of the paper) wants
two: where prompts were seen to part, and the last decoded token. The states between are made all
the same, because a running request may be preempted; here they are taken back as soon as a deeper
one of the same request lies in the tree.

All depths are in tokens from the start of the prompt (or in any unit, as long as it is one).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one prefill forward of one request would compute.

    Attributes:
        start: depth that the request has computed already.
        end: depth after this forward.
        prompt_end: length of the whole prompt.
        grid: distance from ``start`` of the depths at which the forward can leave a state.
        snapshots: the forward can leave a state before its end (SGLang's ``extra_buffer``), one at
            most; otherwise its only state is that of its end (``no_buffer``).
        branch: where the prompt leaves the cached prompts, if no state lies there yet.
    """

    start: int
    end: int
    prompt_end: int
    grid: int = 1
    snapshots: bool = True
    branch: int | None = None

    @property
    def state_depth(self) -> int | None:
        """Depth of the one state that SGLang keeps of this forward; ``None`` if it keeps none."""
        if not self.snapshots:
            return self.end
        if self.end - self.start < self.grid:
            return None
        if self.branch is not None and self._snapshots_at(self.branch):
            return self.branch
        return self.start + (self.end - self.start) // self.grid * self.grid

    def _snapshots_at(self, depth: int) -> bool:
        return self.start < depth <= self.end and (depth - self.start) % self.grid == 0


@dataclass(frozen=True, slots=True)
class OwnState:
    """A state that a request gave to the tree and that a deeper one of the same request follows.

    Attributes:
        depth: tokens from the start of the prompt to the state.
        at_stop: it lies where the admission wanted one, see :func:`lies_at`.
        reused: another request has looked it up since.
        children: prefixes in the tree that go on from it; more than one makes it a branch point.
        prompt_end: it is the prompt's last, and what follows is the last decoded token's.
    """

    depth: int
    at_stop: bool = False
    reused: bool = False
    children: int = 1
    prompt_end: bool = False

    @property
    def shared(self) -> bool:
        """Prompts part here, or another request has been here."""
        return self.at_stop or self.reused or self.children > 1


class Admission(Protocol):
    """Decides where prefill is cut to leave a state, and which states do not stay in the tree."""

    name: str

    def cut(self, chunk: Chunk, stops: Sequence[int] = ()) -> int | None:
        """Depth at which to end ``chunk`` early, so that a state can lie there; ``None`` for none.

        Args:
            stops: depths beside the branch point at which a state is wanted.
        """

    def takes_back(self, state: OwnState) -> bool:
        """Whether the tree gives the state up again, its KV kept."""

    def went_on(self, *, from_output: bool) -> None:
        """A finished request was followed up: with its output, or without the output's end."""


class SGLangAdmission:
    """SGLang's own choice: no forward is cut for a state, and every state stays."""

    name = "sglang"

    def cut(self, chunk: Chunk, stops: Sequence[int] = ()) -> int | None:
        return None

    def takes_back(self, state: OwnState) -> bool:
        return False

    def went_on(self, *, from_output: bool) -> None:
        pass


#: Follow-ups that decide whether ends of prompts stay, and the share of them that has to need one.
FOLLOW_UPS, PROMPT_END_SHARE = 64, 0.1


class JudiciousAdmission:
    """Branch points and the last decoded token stay; all between is taken back.

    The paper leaves it at that. Clients that do not send the whole output back, such as those that
    strip a reasoning model's thoughts, then find no state of their last turn, because their
    prompts part anew every time. So ends of prompts stay too, while at least
    :data:`PROMPT_END_SHARE` of the last :data:`FOLLOW_UPS` or so follow-ups went on from one.

    A chunk that holds a branch point is cut there, because a forward leaves one state a request
    and the end of the chunk may be wanted too. It is not cut where the end will be taken back
    anyway: in a chunk that is not the last, when the forward can snapshot the branch point.
    """

    name = "judicious"

    def __init__(self) -> None:
        self._prompt_end_share = 0.0
        self._follow_ups = 0

    def cut(self, chunk: Chunk, stops: Sequence[int] = ()) -> int | None:
        wanted = {*stops} if chunk.branch is None else {*stops, chunk.branch}
        inside = sorted(stop for stop in wanted if chunk.start + chunk.grid <= stop < chunk.end)
        if not chunk.snapshots:
            return inside[0] if inside else None
        if chunk.end < chunk.prompt_end and inside == [chunk.state_depth]:
            return None
        return next((stop for stop in inside if stop + chunk.grid <= chunk.end), None)

    def takes_back(self, state: OwnState) -> bool:
        if state.shared:
            return False
        return not (state.prompt_end and self._prompt_end_share >= PROMPT_END_SHARE)

    def went_on(self, *, from_output: bool) -> None:
        self._follow_ups = min(self._follow_ups + 1, FOLLOW_UPS)
        self._prompt_end_share += (float(not from_output) - self._prompt_end_share) / (
            self._follow_ups
        )


ADMISSIONS: dict[str, type[Admission]] = {
    SGLangAdmission.name: SGLangAdmission,
    JudiciousAdmission.name: JudiciousAdmission,
}


def lies_at(depth: int, stops: Sequence[int], grid: int = 1) -> bool:
    """Whether a state at ``depth`` is the one meant for a stop: at most a grid step above it."""
    return any(stop - grid < depth <= stop for stop in stops)


def boundaries(tokens: array[int], sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Depths at which each of ``sequences`` first begins in ``tokens``, 0 left out; sorted."""
    found = set()
    for sequence in sequences:
        wanted, at = array(tokens.typecode, sequence), -1
        with suppress(ValueError):
            while True:
                at = tokens.index(wanted[0], at + 1)
                if tokens[at : at + len(wanted)] == wanted:
                    found.add(at)
                    break
    return tuple(sorted(found - {0}))


def forwards(
    admission: Admission, prompt: Chunk, chunk_tokens: int, stops: Sequence[int] = ()
) -> Iterator[Chunk]:
    """The forwards that prefill a prompt, one request at a time.

    Args:
        prompt: the whole prefill as if it were one chunk, from the cached prefix to the end.
        chunk_tokens: as SGLang's ``--chunked-prefill-size``, at least 1.
        stops: see :meth:`Admission.cut`.
    """
    start = prompt.start
    while start < prompt.end:
        chunk = replace(prompt, start=start, end=min(start + chunk_tokens, prompt.end))
        cut = admission.cut(chunk, stops)
        if cut is not None:
            chunk = replace(chunk, end=cut)
        yield chunk
        start = chunk.end
