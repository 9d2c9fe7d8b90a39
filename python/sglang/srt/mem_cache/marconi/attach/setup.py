"""What a cache is made with: the operator's choices, the model's cost, the pools' bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sglang.srt.marconi_utils import ModelCost, PoolBytes, cost_from_config, pool_bytes
from sglang.srt.mem_cache.marconi.config import MarconiConfig, MarconiConfigError
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.registry import POLICIES
from sglang.srt.mem_cache.marconi.eviction.savings import SAVINGS, CostModel, Savings
from sglang.srt.mem_cache.marconi.insight.metrics import PrometheusExporter
from sglang.srt.mem_cache.marconi.insight.stats import MarconiStats

Adopt = Callable[[float], None]
OnError = Callable[[str, Exception, str], None]


class LowerTier(Enum):
    """What lies below the device."""

    HOST = "the host's memory"
    BUFFER = "a buffer before storage"
    LINKER = "an external linker"


@dataclass(frozen=True)
class MarconiSetup:
    """What a cache needs beside SGLang's own parameters.

    Attributes:
        config: the operator's choices.
        cost: FLOPs and bytes of the model's prefixes, with the bytes of this tensor-parallel rank's
            pools on all pipeline stages.
        savings: how the policy prices a prefix.
        policy: who chooses the victims; ``None`` for the one that the config names.
        description: the cost model in a few words, for the log.
        on_request: called with the counters after each counted request, for exporters.
        shared_memory: states and KV take their bytes from one memory.
        make_tuning: makes what tells the tuner's process of requests, given what puts a weight in
            force and what is told of errors; ``None`` for none.
        lower_tier: where what leaves the device may go on living; ``None``: nowhere.
        hints: what the launch could do better, for the log; nothing where another rank says it.
    """

    config: MarconiConfig
    cost: CostModel
    savings: Savings
    policy: EvictionPolicy | None = None
    description: str = ""
    on_request: Callable[[MarconiStats], None] | None = None
    shared_memory: bool = False
    make_tuning: Callable[[Adopt, OnError], Any] | None = None
    lower_tier: LowerTier | None = None
    hints: tuple[str, ...] = ()

    def announce(self, tree: str) -> str:
        """One line for the log: what is active, on which ``tree``."""
        config = self.config
        memory = " of one memory" if self.shared_memory else ""
        return (
            f"Marconi is active: policy {config.marconi_evict_policy} ({config.policy_name}), "
            f"eff weight {config.marconi_eff_weight}, savings {config.marconi_savings}, "
            f"pools {config.marconi_evict_pools}{memory}, admission {config.marconi_admission}, "
            f"cost model {self.description}, tree core {tree}"
        )


def model_cost(hf_config: Any, config: MarconiConfig) -> ModelCost:
    """FLOPs of a hybrid model's prefixes, from its config; zero where only LRU is asked for.

    Raises:
        MarconiConfigError: there is no cost model for it and the policy needs one.
    """
    try:
        return cost_from_config(hf_config)
    except ValueError as error:
        policies = POLICIES.values()
        allowed = [str(entry.number) for entry in policies if not entry.needs_flops]
        if str(config.marconi_evict_policy) in allowed:
            return ModelCost(a=0, b=0, kv_bytes_per_token=0, state_bytes=0, name="unknown FLOPs")
        raise MarconiConfigError(
            f"--marconi-evict-policy is {config.marconi_evict_policy} but FLOPs of this model are "
            f"unknown ({error}); allowed with it is --marconi-evict-policy {' or '.join(allowed)}"
        ) from error


def make_setup(
    config: MarconiConfig,
    hf_config: Any,
    req_to_token_pool: Any,
    kv_pool: Any,
    metric_labels: Mapping[str, str] | None = None,
    over_stages: Callable[[PoolBytes], PoolBytes] | None = None,
) -> MarconiSetup:
    """The setup of one scheduler process, with the bytes of its pools on all pipeline stages.

    Args:
        hf_config: the model's config, as transformers reads it.
        req_to_token_pool: SGLang's pool that holds the recurrent states.
        kv_pool: SGLang's pool of keys and values.
        metric_labels: label names and values of this process; ``None`` for no Prometheus export.
        over_stages: adds up the bytes of all pipeline stages, so that a prefix has one price on
            all of them; ``None`` where there is one stage.
    """
    pools = pool_bytes(req_to_token_pool, kv_pool)
    if over_stages is not None:
        pools = over_stages(pools)
    cost = model_cost(hf_config, config).with_pool_bytes(
        pools.kv_bytes_per_token, pools.state_bytes
    )
    return MarconiSetup(
        config=config,
        cost=cost,
        savings=SAVINGS[config.marconi_savings](cost),
        description=cost.describe(),
        on_request=None if metric_labels is None else PrometheusExporter(metric_labels),
    )
