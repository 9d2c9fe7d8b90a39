"""What the product's server runs: its policies by number, and the paper's score by weight."""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.marconi.config import MarconiConfig, MarconiConfigError

from policies.registry import CacheArguments, PolicyArguments, Recipe, policy_family


@policy_family("server:N[:ALPHA]", "what the server runs under --marconi-evict-policy N; untuned")
def server(arguments: PolicyArguments) -> Recipe:
    number, weight = arguments.text(), arguments.text()
    options = {} if weight is None else {"marconi_eff_weight": weight}
    try:
        config = MarconiConfig.from_options({"marconi_evict_policy": number or "", **options})
    except MarconiConfigError as error:
        raise arguments.error(f"what the server allows: {error}") from error
    assert config is not None
    return _product(config.marconi_evict_policy, options)


@policy_family("marconi:ALPHA", "the paper's score in both pools")
def marconi(arguments: PolicyArguments) -> Recipe:
    return _product(2, {"marconi_eff_weight": arguments.number("ALPHA")})


@policy_family("marconi-state:ALPHA", "the paper's score in the state pool, LRU for KV leaves")
def marconi_state(arguments: PolicyArguments) -> Recipe:
    weight = arguments.number("ALPHA")
    return _product(2, {"marconi_eff_weight": weight, "marconi_evict_pools": "state"})


def _product(number: int, options: dict[str, Any]) -> Recipe:
    return lambda context: CacheArguments(policy=number, options=options)
