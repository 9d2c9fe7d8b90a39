"""Events as bytes on the pipe to the tuner's process, and its answers as lines of JSON."""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.tuning.events import Began, Ended, Event, Flushed
from sglang.srt.mem_cache.marconi.tuning.retrospect import Trial, Verdict
from sglang.srt.mem_cache.marconi.tuning.splits import SplitAdvice
from sglang.srt.mem_cache.marconi.tuning.weights import EFF_WEIGHTS

_HEAD = struct.Struct("<BBQII")
#: When a request arrived, and how long it waited: before the hashes of a request that began.
_CAME = struct.Struct("<QQ")
#: What a byte says of what follows a request.
_HINTS = (None, *Hint)
_SETUP, _BEGAN, _ENDED, _TAKEN_BACK, _FLUSHED, _LOOK_BACK = range(6)


@dataclass(frozen=True, slots=True)
class LookBack:
    """A window has ended: answer for it, naming its number."""

    window: int


def setup(pickled: bytes) -> bytes:
    """The first frame: what the process needs to know, pickled."""
    return _HEAD.pack(_SETUP, 0, 0, 0, len(pickled)) + pickled


def began(
    run_id: int, prompt_tokens: int, hashes: bytes, arrived_ms: int = 0, waited_ms: int = 0
) -> bytes:
    """A :class:`Began`; hashes are 8 bytes each, of this machine's byte order."""
    body = _CAME.pack(arrived_ms, waited_ms) + hashes
    return _HEAD.pack(_BEGAN, 0, run_id, prompt_tokens, len(body)) + body


def ended(
    run_id: int, generated: bytes | None, output_tokens: int = 0, hint: Hint | None = None
) -> bytes:
    """An :class:`Ended`."""
    if generated is None:
        return _HEAD.pack(_TAKEN_BACK, 0, run_id, 0, 0)
    said = _HINTS.index(hint)
    return _HEAD.pack(_ENDED, said, run_id, output_tokens, len(generated)) + generated


def flushed() -> bytes:
    return _HEAD.pack(_FLUSHED, 0, 0, 0, 0)


def look_back(window: int) -> bytes:
    return _HEAD.pack(_LOOK_BACK, 0, window, 0, 0)


def read_setup(stream: BinaryIO) -> bytes:
    """The first frame's bytes.

    Raises:
        EOFError: the stream ended.
        ValueError: it is another frame.
    """
    kind, _, _, _, size = _HEAD.unpack(_exactly(stream, _HEAD.size))
    if kind != _SETUP:
        raise ValueError(f"the first frame is of kind {kind}, not {_SETUP}")
    return _exactly(stream, size)


def read_events(stream: BinaryIO) -> Iterator[Event | LookBack]:
    """All further frames, until the stream ends."""
    while True:
        try:
            kind, said, number, tokens, size = _HEAD.unpack(_exactly(stream, _HEAD.size))
            came = _CAME.unpack(_exactly(stream, _CAME.size)) if kind == _BEGAN else ()
            body = array("Q", _exactly(stream, size - _CAME.size * bool(came)))
        except EOFError:
            return
        if kind == _BEGAN:
            yield Began(number, tokens, body, *came)
        elif kind == _ENDED:
            yield Ended(number, body, tokens, _HINTS[said])
        elif kind == _TAKEN_BACK:
            yield Ended(number, None)
        elif kind == _FLUSHED:
            yield Flushed()
        elif kind == _LOOK_BACK:
            yield LookBack(number)
        else:
            raise ValueError(f"a frame is of unknown kind {kind}")


def _split(record: dict[str, Any] | None) -> SplitAdvice | None:
    if record is None:
        return None
    numbers = {name: float(record[name]) for name in ("ratio", "saved", "ratio_now", "saved_now")}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError(f"the split {record} is not finite")
    return SplitAdvice(**numbers, requests=int(record["requests"]))


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def answer(window: int, verdict: Verdict, cpu_seconds: float) -> bytes:
    """A verdict as one line."""
    record = {
        "window": window,
        "chosen": verdict.chosen,
        "requests": verdict.requests,
        "flops_saved": [trial.flops_saved for trial in verdict.trials],
        "hit_tokens": [trial.hit_tokens for trial in verdict.trials],
        "split": None if verdict.split is None else asdict(verdict.split),
        "cpu_seconds": cpu_seconds,
    }
    return json.dumps(record).encode() + b"\n"


def failure(reason: str) -> bytes:
    """Why the process ends, as one line."""
    return json.dumps({"failure": reason}).encode() + b"\n"


def read_answer(line: bytes, window: int) -> tuple[Verdict, float]:
    """A verdict on ``window``, and the CPU seconds the process has used.

    Raises:
        ValueError: the line is no such verdict; the message quotes its beginning.
    """
    try:
        record: dict[str, Any] = json.loads(line)
        if "failure" in record:
            raise ValueError(record["failure"])
        verdict = Verdict(
            int(record["chosen"]),
            int(record["requests"]),
            tuple(
                Trial(float(flops), int(tokens))
                for flops, tokens in zip(record["flops_saved"], record["hit_tokens"], strict=True)
            ),
            _split(record["split"]),
        )
        sound = (
            record["window"] == window
            and len(verdict.trials) == len(EFF_WEIGHTS)
            and 0 <= verdict.chosen < len(EFF_WEIGHTS)
            and all(math.isfinite(trial.flops_saved) for trial in verdict.trials)
        )
        cpu_seconds = float(record["cpu_seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"unreadable answer {line[:200]!r}: {error}") from error
    if not sound:
        raise ValueError(f"answer {line[:200]!r} is not one on window {window}")
    return verdict, cpu_seconds
