"""Would another split of memory between KV and states have saved much more?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from sglang.srt.mem_cache.marconi.tuning.events import Began, Event, serve
from sglang.srt.mem_cache.marconi.tuning.shadow_cache import ShadowCache, ShadowShape

#: Bytes of states to a byte of KV, as multiples of what they are now.
FACTORS = (0.25, 0.5, 2.0, 4.0)
#: Share of the prompts' FLOPs that another split must save more to be worth a restart.
WORTH_A_RESTART = 0.05
#: A split must leave the pools room for so many states and blocks to be tried at all.
FEWEST = 8


@dataclass(frozen=True)
class SplitAdvice:
    """A split that would have saved much more.

    Attributes:
        ratio: its bytes of states to a byte of KV: ``--mamba-full-memory-ratio``.
        saved: share of the prompts' FLOPs that it would have saved.
        ratio_now, saved_now: those of the split in force.
        requests: in the windows looked back at.
    """

    ratio: float
    saved: float
    ratio_now: float
    saved_now: float
    requests: int

    def sentence(self) -> str:
        """For the log."""
        return (
            f"with --mamba-full-memory-ratio {self.ratio:.2g} the last {self.requests} requests "
            f"would have saved {100 * self.saved:.1f} % of their prefill FLOPs; at the present "
            f"split ({self.ratio_now:.2g}) it is {100 * self.saved_now:.1f} %"
        )


class SplitWatch:
    """Lets the same requests live under the present split of memory and some others.

    Args:
        shape: of the server.
        make_policy: one policy for each shadow.
    """

    def __init__(
        self, shape: ShadowShape, cost: CostModel, make_policy: Callable[[], EvictionPolicy]
    ) -> None:
        self._cost = cost
        self._block = shape.block_tokens
        kv = shape.kv_blocks * shape.block_tokens * cost.kv_bytes_per_token
        states = shape.state_slots * cost.state_bytes
        ratio = states / kv if kv else 0.0
        # A pool of compressed states is sized by a flag of its own, whatever the ratio is.
        factors = FACTORS if shape.working_states else ()
        ratios = [ratio, *(ratio * factor for factor in factors)]
        shapes = [shape, *(resplit(shape, cost, kv + states, other) for other in ratios[1:])]
        self._shadows = [
            (ratio, ShadowCache(shape, make_policy()))
            for ratio, shape in zip(ratios, shapes, strict=True)
            if shape is not None
        ]
        self._start_window()

    def _start_window(self) -> None:
        self._saved = [0.0] * len(self._shadows)
        self._needed = 0.0
        self._requests = 0

    def follow(self, event: Event) -> None:
        """Let all splits live through one event."""
        if isinstance(event, Began):
            self._requests += 1
            self._needed += self._cost.flops(0, event.prompt_tokens)
        for index, (_, shadow) in enumerate(self._shadows):
            hit = serve(shadow, event)
            if hit:
                self._saved[index] += self._cost.flops(0, hit * self._block)

    def look_back(self) -> SplitAdvice | None:
        """The best split, if it is worth a restart; the next window begins."""
        best = max(range(len(self._shadows)), key=lambda index: self._saved[index])
        gain = self._saved[best] - self._saved[0]
        advice = None
        if self._needed and gain >= WORTH_A_RESTART * self._needed:
            advice = SplitAdvice(
                ratio=self._shadows[best][0],
                saved=self._saved[best] / self._needed,
                ratio_now=self._shadows[0][0],
                saved_now=self._saved[0] / self._needed,
                requests=self._requests,
            )
        self._start_window()
        return advice


def resplit(
    shape: ShadowShape, cost: CostModel, memory_bytes: float, ratio: float
) -> ShadowShape | None:
    """The same server with ``ratio`` bytes of states to a byte of KV; ``None``: too little of one.

    Args:
        memory_bytes: of both pools together.
    """
    kv = memory_bytes / (1 + ratio)
    blocks = int(kv / (cost.kv_bytes_per_token * shape.block_tokens))
    states = int((memory_bytes - kv) / cost.state_bytes)
    if min(blocks, states) < FEWEST:
        return None
    return replace(shape, kv_blocks=blocks, state_slots=states)
