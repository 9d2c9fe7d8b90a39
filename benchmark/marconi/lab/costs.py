"""The cost of the model that a run is for, and the pools that a budget of bytes buys."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

from sglang.srt.marconi_utils import (
    PAPER_7B,
    PAPER_7B_NAME,
    ModelCost,
    SeedCost,
    cost_by_name,
    cost_from_config,
)

#: SGLang's default ``--mamba-full-memory-ratio``: bytes of states to a byte of KV.
DEFAULT_RATIO = 0.9
_SHAPE = [shape_field.name for shape_field in fields(SeedCost)]


def load_cost(model: str) -> ModelCost:
    """A model's cost by name, or from a JSON file: a ``config.json``, or a shape of the paper's.

    Raises:
        KeyError: neither a file nor a known name.
        ValueError: the config's architecture has no cost model.
    """
    path = Path(model)
    if not path.is_file():
        return cost_by_name(model)
    config = json.loads(path.read_text())
    if set(config) == set(_SHAPE):
        return SeedCost(**config).as_model_cost(path.stem)
    return cost_from_config(config, name=path.stem)


def in_time(cost: ModelCost, attention_time: float) -> ModelCost:
    """The same cost with FLOPs counted by the time that they take, of which others take one each.

    Args:
        attention_time: of a FLOP of attention.
    """
    windows = tuple(
        replace(term, flops_per_pair=round(term.flops_per_pair * attention_time))
        for term in cost.windows
    )
    return replace(cost, b=round(cost.b * attention_time), windows=windows)


def paper_shape(model: str) -> SeedCost:
    """A hybrid model as the paper counts it: its 7B by name, or a JSON file with its five numbers.

    Raises:
        ValueError: the paper has no formulas for this model.
    """
    if model.lower() == PAPER_7B_NAME:
        return PAPER_7B
    path = Path(model)
    config = json.loads(path.read_text()) if path.is_file() else {}
    if set(config) != set(_SHAPE):
        raise ValueError(
            f"--model is {model!r}; allowed with --engine paper are {PAPER_7B_NAME} and a JSON "
            f"file with {', '.join(_SHAPE)}"
        )
    return SeedCost(**config)


def split_memory(gib: float, ratio: float, cost: ModelCost) -> tuple[int, int]:
    """KV tokens and states of a budget; ``ratio`` is bytes of states over bytes of KV."""
    kv_bytes = gib * 2**30 / (1 + ratio)
    return (
        int(kv_bytes / cost.kv_bytes_per_token),
        int((gib * 2**30 - kv_bytes) / cost.state_bytes),
    )
