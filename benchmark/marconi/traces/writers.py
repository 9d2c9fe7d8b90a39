"""Writes requests in the formats that the readers and SGLang's ``bench_serving`` take."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from traces.expand import expand_output, expand_prompt
from traces.files import open_text_for_writing
from traces.formats.mooncake import BLOCK_TOKENS
from traces.hashing import name_id
from traces.regroup import regroup
from traces.request import Request

Record = dict[str, Any]


@dataclass(frozen=True)
class WriterOptions:
    """What a writer knows besides the request.

    Attributes:
        block: tokens of a block of the requests' ids.
        vocab_size: token ids made up for block ids lie below it.
        tokenizer: a Hugging Face tokenizer, for a format of text.
    """

    block: int = 64
    vocab_size: int = 32_000
    tokenizer: Any = None


class _Blocks:
    """Block-hash JSON lines; token ids are lost."""

    def __init__(self, options: WriterOptions) -> None:
        self._block = options.block

    def record(self, request: Request) -> Record:
        record: Record = {"timestamp": plain(request.timestamp_ms)}
        if request.session is not None:
            record["session_id"] = request.session
        record |= {
            "input_length": request.input_length,
            "output_length": request.output_length,
            "hash_ids": request.prompt_ids,
        }
        total = request.input_length + request.output_length
        if request.output_ids or total // self._block == len(request.prompt_ids):
            record["output_hash_ids"] = request.output_ids
        if request.hint is not None:
            record["hint"] = request.hint
        return record


class _Mooncake:
    """Mooncake's JSON lines; sessions, outputs' blocks, token ids and hints are lost.

    Raises:
        ValueError: 512 tokens are no whole number of the requests' blocks.
    """

    def __init__(self, options: WriterOptions) -> None:
        self._block = options.block

    def record(self, request: Request) -> Record:
        return _hashed(regroup(request, self._block, BLOCK_TOKENS), BLOCK_TOKENS)


class _BenchServingMooncake:
    """``bench_serving --dataset-name mooncake``: SGLang writes a text of its own for each block id.

    Blocks keep their size: a prompt's text is as long as its ids are many (SGLang takes 128 words
    an id), not as the trace says.
    """

    def __init__(self, options: WriterOptions) -> None:
        self._block = options.block

    def record(self, request: Request) -> Record:
        return _hashed(request, self._block)


class _Marconi:
    """Marconi's JSON lines; block ids expand to token ids, a request alone is a session."""

    def __init__(self, options: WriterOptions) -> None:
        self._options = options
        self._turns: Counter[str] = Counter()
        self._alone = 0

    def record(self, request: Request) -> Record:
        session = request.session
        if session is None:
            session = f"alone-{self._alone}"
            self._alone += 1
        turn = self._turns[session]
        self._turns[session] += 1
        block, vocab_size = self._options.block, self._options.vocab_size
        prompt = expand_prompt(request, block, vocab_size)
        output = expand_output(request, block, vocab_size)
        return {
            "session_id": session,
            "turn_id": turn,
            "ts": request.timestamp_ms / 1000,
            "num_input_tokens": len(prompt),
            "num_output_tokens": len(output),
            "input_tokens": prompt,
            "output_tokens": output,
        }


class _BenchServingCustom:
    """``bench_serving --dataset-name custom``: prompt and answer as text, by a tokenizer.

    Times and sessions are lost; SGLang shuffles the requests. Text that is tokenized again may be
    a few tokens longer or shorter.

    Raises:
        ValueError: there is no tokenizer.
    """

    def __init__(self, options: WriterOptions) -> None:
        if options.tokenizer is None:
            raise ValueError("bench-serving-custom is text and needs --tokenizer")
        self._options = options
        special = set(options.tokenizer.all_special_ids)
        vocabulary = options.tokenizer.get_vocab().values()
        self._tokens = sorted(token for token in vocabulary if token not in special)

    def record(self, request: Request) -> Record:
        texts = []
        for own, expand in (
            (request.input_tokens, expand_prompt),
            (request.output_tokens, expand_output),
        ):
            tokens = expand(request, self._options.block, len(self._tokens))
            if own is None:
                tokens = [self._tokens[token] for token in tokens]
            texts.append(self._options.tokenizer.decode(tokens))
        prompt, answer = texts
        return {
            "conversations": [
                {"from": "human", "value": prompt},
                {"from": "gpt", "value": answer},
            ]
        }


WRITERS: dict[str, Callable[[WriterOptions], Any]] = {
    "blocks": _Blocks,
    "mooncake": _Mooncake,
    "marconi": _Marconi,
    "bench-serving-mooncake": _BenchServingMooncake,
    "bench-serving-custom": _BenchServingCustom,
}


def write_trace(
    requests: Iterable[Request],
    path: Path,
    to: str = "blocks",
    options: WriterOptions | None = None,
) -> int:
    """Write requests to a new file (compressed as its name ends), and return how many.

    Raises:
        ValueError: the format is unknown, or cannot hold these requests.
    """
    if to not in WRITERS:
        raise ValueError(f"--to is {to!r}; allowed are {', '.join(WRITERS)}")
    writer = WRITERS[to](options or WriterOptions())
    count = 0
    # A trace of which nothing can be read leaves no file.
    requests = iter(requests)
    requests = itertools.chain([*itertools.islice(requests, 1)], requests)
    with closing(open_text_for_writing(path)) as out:
        for request in tqdm(requests, desc=path.name, unit="request", mininterval=2):
            out.write(json.dumps(writer.record(request), separators=(",", ":")) + "\n")
            count += 1
    return count


def plain(value: float) -> float | int:
    """The number as JSON writes it shortest: whole ones without a point."""
    return int(value) if math.isfinite(value) and value == int(value) else value


def _hashed(request: Request, block: int) -> Record:
    """Ids of the prompt's blocks, and one of its own for the last where that is partial."""
    ids = request.prompt_ids
    if request.input_length % block:
        ids = (*ids, name_id("partial", request.session, request.input_length, *ids[-1:]))
    return {
        "timestamp": plain(request.timestamp_ms),
        "input_length": request.input_length,
        "output_length": request.output_length,
        "hash_ids": ids,
    }
