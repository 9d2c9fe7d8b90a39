"""A mix of session shapes, interleaved as sessions arrive."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping

from traces.generator.content import Content
from traces.generator.shapes import SHAPES, Draws, Sizes
from traces.hashing import token_request
from traces.request import Request
from traces.timing import Timing, interleave


def parse_mix(text: str) -> dict[str, float]:
    """Shapes and their shares of the sessions, from ``chat=3,noise=1`` (a bare name: 1).

    Raises:
        ValueError: an unknown shape, a share that is not above 0, or nothing.
    """
    mix: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, share = part.partition("=")
        if name not in SHAPES:
            raise ValueError(f"shape {name!r} is unknown; allowed are {', '.join(SHAPES)}")
        try:
            mix[name] = float(share or 1)
        except ValueError:
            mix[name] = 0.0
        if not 0 < mix[name] < float("inf"):
            raise ValueError(f"the share of {name} is {share!r}; allowed are numbers above 0")
    if not mix:
        raise ValueError(f"no shape was named; allowed are {', '.join(SHAPES)}")
    return mix


def generate(
    mix: Mapping[str, float],
    *,
    sessions: int,
    sizes: Sizes | None = None,
    timing: Timing | None = None,
    block: int = 64,
    keep_tokens: bool = False,
) -> Iterator[Request]:
    """``sessions`` sessions' requests in the order in which they arrive.

    The same arguments give the same requests; more sessions keep the first ones. The seed is
    ``timing``'s. Memory is that of the sessions that run at the same time.
    """
    sizes, timing = sizes or Sizes(), timing or Timing()
    content = Content(timing.seed, sizes.vocab)
    names, shares = list(mix), list(mix.values())
    kinds = random.Random(f"{timing.seed}/shapes")

    def one(name: str, number: int) -> Iterator[Request]:
        session = f"{name}-{number}"
        draws = Draws(timing.session_rng(session), content, sizes, timing)
        for turn in SHAPES[name](draws):
            yield token_request(
                turn.at_ms, session, turn.prompt, turn.output, block, keep_tokens=keep_tokens
            )

    drawn = (kinds.choices(names, shares)[0] for _ in itertools.count())
    numbered = (one(name, number) for number, name in zip(range(sessions), drawn, strict=False))
    return interleave(numbered, timing)
