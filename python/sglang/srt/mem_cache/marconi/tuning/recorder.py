"""Writes a server's requests as JSON lines of block hashes, as they are served; never a token.

The lines are those of the trace lab's format ``blocks``: ``timestamp`` (ms since 1970),
``input_length`` and ``output_length`` (tokens), ``hash_ids`` and ``output_hash_ids`` (one id a full
block of ``block_tokens`` tokens, equal where all before is equal too); where something was said of
what follows, ``hint``. ``timestamp`` is the request's arrival where there is ``waited_ms``, the
time from then until its first prefill chunk was computed; else it is when the line was begun.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang.srt.mem_cache.marconi.tuning.events import Began, Ended, Event

#: Requests that a slow one may hold up; beyond, it is written without its output.
MOST_HELD = 4096
#: Ids fit a signed 64-bit integer, and leave room for others.
_ID_SHIFT = 2


class Recorder:
    """Appends requests to a file; several processes may append to the same one.

    Args:
        clock: seconds, where nobody knows when a request arrived; it decides nothing.

    Raises:
        OSError: the file cannot be written, here or in any method.
    """

    def __init__(
        self, path: Path, block_tokens: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._file = path.open("ab", buffering=0)
        self._block_tokens = block_tokens
        self._clock = clock
        self._held: dict[int, dict[str, Any]] = {}
        self._ended: set[int] = set()

    def follow(self, event: Event) -> None:
        """Note one event of the stream; requests that did not finish are left out."""
        if isinstance(event, Began):
            self._held[event.run_id] = {
                "timestamp": event.arrived_ms or round(self._clock() * 1000),
                "input_length": event.prompt_tokens,
                "output_length": 0,
                "hash_ids": [block >> _ID_SHIFT for block in event.hashes],
                "output_hash_ids": [],
                "block_tokens": self._block_tokens,
            }
            if event.arrived_ms:
                self._held[event.run_id]["waited_ms"] = event.waited_ms
            if len(self._held) > MOST_HELD:
                self._ended.add(next(iter(self._held)))
        elif isinstance(event, Ended) and event.run_id in self._held:
            if event.generated is None:
                del self._held[event.run_id]
            else:
                record = self._held[event.run_id]
                record["output_length"] = event.output_tokens
                record["output_hash_ids"] = [block >> _ID_SHIFT for block in event.generated]
                if event.hint is not None:
                    record["hint"] = event.hint.value
                self._ended.add(event.run_id)
        self._write()

    def _write(self) -> None:
        lines = []
        while self._held:
            first = next(iter(self._held))
            if first not in self._ended:
                break
            self._ended.discard(first)
            lines.append(json.dumps(self._held.pop(first), separators=(",", ":")) + "\n")
        if lines:
            self._file.write("".join(lines).encode())
