"""Reads what a server wrote under ``--marconi-record``: see ``tuning/recorder.py``."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.tuning.block_hashes import BlockHasher


@dataclass(frozen=True)
class HashedRequest:
    """A request as chained block hashes (:class:`BlockHasher`).

    Attributes:
        prompt_tokens: length of its prompt.
        prompt: hashes of the prompt's whole blocks.
        generated: hashes of the blocks filled beyond them.
        hint: what was said of what follows.
    """

    prompt_tokens: int
    prompt: array[int]
    generated: array[int]
    hint: Hint | None = None


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
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                report(f"{path}:{number}: left out, it is no request: {error!r}")
                continue
            request = HashedRequest(tokens, hashes[: len(prompt)], hashes[len(prompt) :], hint)
            yield request, size
