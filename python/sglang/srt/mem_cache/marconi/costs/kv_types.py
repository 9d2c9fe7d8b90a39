"""What a token of KV weighs in each type that SGLang can hold it in."""

from __future__ import annotations

from dataclasses import replace

from sglang.srt.mem_cache.marconi.costs.model import ModelCost

#: Bytes a number, by SGLang's ``--kv-cache-dtype``; ``auto`` is the model's own type, as which 16
#: bits are taken.
KV_TYPES = {"auto": 2, "bfloat16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}


def with_kv_type(cost: ModelCost, name: str) -> ModelCost:
    """The same model with KV of another type.

    Args:
        name: a key of :data:`KV_TYPES`; ``auto`` changes nothing.

    Raises:
        ValueError: the model's layers are not known, and so neither what of it is KV.
    """
    if name == "auto":
        return cost
    if cost.layers is None:
        raise ValueError(
            f"--kv-cache-dtype is {name}; allowed with a model that has bytes of its own is auto"
        )
    return replace(cost, kv_bytes_per_token=cost.layers.kv_elements * KV_TYPES[name])
