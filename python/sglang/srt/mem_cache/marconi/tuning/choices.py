"""What the tuner may choose between: policies and weights, each a whole configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sglang.srt.mem_cache.marconi.config import AUTO, DEFAULT_EFF_WEIGHT, MarconiConfig
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.registry import create_policy
from sglang.srt.mem_cache.marconi.eviction.savings import SAVINGS, CostModel

#: The paper's grid: 0, 0.1, … 2.
EFF_WEIGHTS: tuple[float, ...] = tuple(tenths / 10 for tenths in range(21))


#: Policies that ``--marconi-evict-policy auto`` chooses between: by name, what each fixes of the
#: configuration. Stock LRU is the first: it is in force until a window shows another to be better.
TUNABLE: dict[str, dict[str, Any]] = {
    "lru": {"marconi_evict_policy": 1, "marconi_evict_pools": "both"},
    "marconi-state": {"marconi_evict_policy": 2, "marconi_evict_pools": "state"},
    "marconi": {"marconi_evict_policy": 2, "marconi_evict_pools": "both"},
    "value": {"marconi_evict_policy": 3, "marconi_evict_pools": "both"},
}


@dataclass(frozen=True)
class Choice:
    """One policy, with one weight if it has any.

    Attributes:
        config: the operator's options with nothing left to the tuner.
    """

    config: MarconiConfig

    @property
    def is_stock(self) -> bool:
        """It evicts what SGLang would."""
        return self.config.marconi_evict_policy == 1

    @property
    def is_weighted(self) -> bool:
        """It weighs FLOP efficiency against recency."""
        return self.config.marconi_evict_policy == 2

    @property
    def eff_weight(self) -> float:
        """Weight of FLOP efficiency; 0 where there is none."""
        return float(self.config.marconi_eff_weight) if self.is_weighted else 0.0

    def make_policy(self, cost: CostModel) -> EvictionPolicy:
        """The policy that it stands for, over an empty cache."""
        return create_policy(self.config, SAVINGS[self.config.marconi_savings](cost))

    @property
    def label(self) -> str:
        if not self.is_weighted:
            return self.config.policy_name
        return f"{self.config.marconi_evict_pools}:{self.eff_weight:g}"


def choices(config: MarconiConfig) -> tuple[Choice, ...]:
    """All that the tuner may choose; the first is in force until it chose.

    Weights come lowest first, so that the first of equals is the lowest.
    """
    if config.marconi_evict_policy == AUTO:
        policies = [replace(config, **fixed) for fixed in TUNABLE.values()]
    else:
        policies = [config]
    found = []
    for policy in policies:
        if policy.marconi_evict_policy != 2:
            found.append(Choice(replace(policy, marconi_eff_weight=0.0)))
            continue
        weights = EFF_WEIGHTS if policy.marconi_eff_weight == AUTO else (policy.marconi_eff_weight,)
        found += [Choice(replace(policy, marconi_eff_weight=weight)) for weight in weights]
    return tuple(found)


def untuned(config: MarconiConfig, *, is_tuned: bool) -> Choice:
    """What is in force at first, or for good where nothing is tuned."""
    if is_tuned or not config.tunes:
        return choices(config)[0]
    if config.marconi_evict_policy == AUTO:
        config = replace(config, marconi_evict_policy=2)
    return Choice(replace(config, marconi_eff_weight=DEFAULT_EFF_WEIGHT))
