"""Reads what a server wrote under ``--marconi-record``: see ``tuning/recorder.py``."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.tuning.block_hashes import BlockHasher


@dataclass(frozen=True)
class HashedRequest:
    """A request as chained block hashes (:class:`BlockHasher`).

    Attributes:
        input_length: tokens of its prompt.
        prompt_ids: hashes of the prompt's whole blocks.
        output_ids: hashes of the blocks filled beyond them.
        hint: what was said of what follows.
        output_length: tokens of its answer, 0 where unknown.
        session: requests of one session follow each other; ``None`` where unknown.
        timestamp_ms: its arrival, from any origin that all requests share; NaN where unknown.
        waited_ms: from its arrival until its first prefill chunk was computed, as the server did
            it; ``None`` where unknown.
    """

    input_length: int
    prompt_ids: array[int]
    output_ids: array[int]
    hint: Hint | None = None
    output_length: int = 0
    session: str | None = None
    timestamp_ms: float = math.nan
    waited_ms: float | None = None


def read_recording(path: Path, report: Callable[[str], None]) -> tuple[list[HashedRequest], int]:
    """The requests of a recording, and its tokens a block.

    Args:
        report: told of each line that is no request, with file and line; it is left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no request, or blocks of different sizes.
    """
    sizes: set[int] = set()
    requests = []
    for request, size in _lines(path, report):
        sizes.add(size)
        requests.append(request)
    if not requests:
        raise ValueError(
            f"{path} holds no request; allowed is a file of --marconi-record, and for traces of "
            "other formats benchmark/marconi/advise.py"
        )
    if len(sizes) > 1:
        found = ", ".join(map(str, sorted(sizes)))
        raise ValueError(f"{path} holds blocks of {found} tokens; allowed is one size a file")
    return requests, sizes.pop()


def with_sessions(requests: Iterable[HashedRequest]) -> Iterator[HashedRequest]:
    """The requests, each without a session in that of the request that it goes on from, if any.

    A prompt that begins with all whole blocks of an earlier request and its answer goes on from the
    longest such. Of several that do, the first does; so does one of several requests that end
    within a prefix which all of them share.
    """
    open_ends: dict[int, str] = {}
    ends: set[int] = set()
    for number, request in enumerate(requests):
        if request.session is not None:
            yield request
            continue
        end = next((hash for hash in reversed(request.prompt_ids) if hash in open_ends), None)
        session = f"request {number}" if end is None else open_ends.pop(end)
        whole = request.output_ids or request.prompt_ids
        if whole and whole[-1] not in ends:
            ends.add(whole[-1])
            open_ends[whole[-1]] = session
        yield replace(request, session=session)


def _lines(path: Path, report: Callable[[str], None]) -> Iterator[tuple[HashedRequest, int]]:
    hasher = BlockHasher(1)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                prompt, output = list(record["hash_ids"]), list(record["output_hash_ids"])
                hashes = array("Q", hasher.extend(0, 0, prompt + output).tobytes())
                tokens, size = int(record["input_length"]), int(record["block_tokens"])
                if size < 1 or tokens // size != len(prompt):
                    raise ValueError(f"{tokens} tokens do not fill {len(prompt)} blocks of {size}")
                hint = Hint(record["hint"]) if "hint" in record else None
                request = HashedRequest(
                    *(tokens, hashes[: len(prompt)], hashes[len(prompt) :], hint),
                    output_length=int(record.get("output_length", 0)),
                )
                # Of before it was recorded, the timestamp is no arrival.
                if "waited_ms" in record:
                    arrived, waited = float(record["timestamp"]), float(record["waited_ms"])
                    request = replace(request, timestamp_ms=arrived, waited_ms=waited)
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                report(f"{path}:{number}: left out, it is no request: {error!r}")
                continue
            yield request, size
