"""The weights that the tuner may choose between, and the one in force before it chose."""

from __future__ import annotations

from dataclasses import replace

from sglang.srt.mem_cache.marconi.config import DEFAULT_EFF_WEIGHT, MarconiConfig
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.registry import POLICIES, create_policy
from sglang.srt.mem_cache.marconi.eviction.savings import SAVINGS, CostModel

#: The paper's grid: 0, 0.1, … 2. Lowest first, so that the first of equals is the lowest.
EFF_WEIGHTS: tuple[float, ...] = tuple(tenths / 10 for tenths in range(21))


def first_weight(config: MarconiConfig, *, is_tuned: bool) -> float:
    """The weight in force until one is chosen, or for good; 0 where the policy has none.

    Args:
        is_tuned: there is a tuner for what the configuration leaves to one.
    """
    if "marconi_eff_weight" not in POLICIES[config.marconi_evict_policy].options:
        return 0.0
    if config.tunes:
        return EFF_WEIGHTS[0] if is_tuned else DEFAULT_EFF_WEIGHT
    return float(config.marconi_eff_weight)


def weighted_policy(config: MarconiConfig, eff_weight: float, cost: CostModel) -> EvictionPolicy:
    """The policy of a configuration with a weight, over an empty cache."""
    config = replace(config, marconi_eff_weight=eff_weight)
    return create_policy(config, SAVINGS[config.marconi_savings](cost))
