"""What a token of KV weighs in each type without scales that SGLang can hold it in."""

from __future__ import annotations

from dataclasses import replace

from sglang.srt.mem_cache.marconi.costs.model import ModelCost

#: The model's own type.
AUTO = "auto"
#: Bytes a number, by SGLang's ``--kv-cache-dtype``; of ``auto`` where the model has 16 bits.
KV_TYPES = {AUTO: 2, "bf16": 2, "bfloat16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}


def with_kv_type(cost: ModelCost, name: str) -> ModelCost:
    """The same model with KV of another type.

    Args:
        name: a key of :data:`KV_TYPES`; ``auto`` changes nothing.

    Raises:
        ValueError: the model's layers are not known.
    """
    if name == AUTO:
        return cost
    if cost.layers is None:
        raise ValueError(
            f"--kv-cache-dtype is {name}, but the layers of this model are not known; allowed with "
            f"it is {AUTO}"
        )
    return replace(cost, kv_bytes_per_token=cost.layers.kv_elements * KV_TYPES[name])
