"""Looks back at the requests: what would each weight have saved on them?

Every weight has a shadow that began empty with the first request, as the published simulator's
replays do, and lives on from window to window. A replay of one window that starts from what the
live cache held, or from an empty cache each time, mostly measures the way out of what was cached
before, or a cache that has not yet kept anything for too long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sglang.srt.mem_cache.marconi.config import MarconiConfig
from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from sglang.srt.mem_cache.marconi.tuning.events import Began, Event, serve
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape
from sglang.srt.mem_cache.marconi.tuning.splits import SplitAdvice, SplitWatch
from sglang.srt.mem_cache.marconi.tuning.weights import EFF_WEIGHTS, weighted_policy

#: Share of FLOPs saved by which another weight must beat the one in force, once one was chosen.
HYSTERESIS = 0.005
#: Weight of a window against the next, when weights are compared.
DECAY = 0.5


@dataclass(frozen=True)
class Trial:
    """How one weight did.

    Attributes:
        flops_saved: FLOPs of prefilling what hit in the last window, and of earlier ones with
            :data:`DECAY` for each window that followed.
        hit_tokens: prompt tokens that hit in the last window.
    """

    flops_saved: float
    hit_tokens: int


@dataclass(frozen=True)
class Verdict:
    """What a window says.

    Attributes:
        chosen: index of the weight to put in force.
        requests: number of requests in the last window.
        trials: one a weight, in their order.
        split: another split of memory that would have saved much more, if there is one.
    """

    chosen: int
    requests: int
    trials: tuple[Trial, ...]
    split: SplitAdvice | None = None


class Retrospect:
    """Lets the policy serve the same requests with every weight of :data:`EFF_WEIGHTS`.

    Args:
        current: index of the weight in force, ``None`` if nothing was chosen yet: then the best is
            taken by however little it leads.
    """

    def __init__(
        self,
        shape: ShadowShape,
        cost: CostModel,
        config: MarconiConfig,
        *,
        current: int | None = None,
    ) -> None:
        self._cost = cost
        self._block_tokens = shape.block_tokens
        self._current = current
        self._shadows = [
            ShadowCache(shape, weighted_policy(config, weight, cost)) for weight in EFF_WEIGHTS
        ]
        self._splits = SplitWatch(shape, cost, partial(weighted_policy, config, 0.0, cost))
        self._flops = [0.0] * len(EFF_WEIGHTS)
        self._tokens = [0] * len(EFF_WEIGHTS)
        self._requests = 0

    def follow(self, event: Event) -> None:
        """Let all weights live through one event."""
        self._requests += isinstance(event, Began)
        self._splits.follow(event)
        for index, shadow in enumerate(self._shadows):
            hit = serve(shadow, event) * self._block_tokens
            if hit:
                self._tokens[index] += hit
                self._flops[index] += self._cost.flops(0, hit)

    def look_back(self) -> Verdict:
        """Choose one; the next window begins."""
        self._current = choose(self._flops, self._current)
        trials = tuple(map(Trial, self._flops, self._tokens))
        verdict = Verdict(self._current, self._requests, trials, self._splits.look_back())
        self._flops = [flops * DECAY for flops in self._flops]
        self._tokens = [0] * len(self._tokens)
        self._requests = 0
        return verdict


def choose(saved: Sequence[float], current: int | None) -> int:
    """Which weight to put in force.

    Args:
        saved: FLOPs saved by each; the first of equals is preferred.
        current: the one in force, which is kept unless another saves more by :data:`HYSTERESIS`;
            ``None`` if none was chosen yet.
    """
    best = max(range(len(saved)), key=lambda index: saved[index])
    if current is None or saved[best] > saved[current] * (1 + HYSTERESIS):
        return best
    return current
