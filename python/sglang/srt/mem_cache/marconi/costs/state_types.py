"""What a cached state weighs in each type that SGLang can hold it in."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.costs.model import ModelCost

#: Bytes an element of convolution states, which no flag changes.
CONV_BYTES = 2


@dataclass(frozen=True)
class StateType:
    """A type of cached states.

    Attributes:
        name: for a table.
        flags: how the server is told.
        bytes: of one cached state, scales and convolution included.
        compressed: cached states have a pool of their own, and running requests work on states of
            the config's type in another.
    """

    name: str
    flags: str
    bytes: int
    compressed: bool = False


def state_types(cost: ModelCost) -> tuple[StateType, ...]:
    """The types that the states of a model can be cached in, largest first.

    Compressed states keep their scales in the type of the states that requests work on.

    Args:
        cost: with states of the config's type.

    Returns:
        Nothing where the layers are not known, or have no state but a convolution's.
    """
    layers = cost.layers
    if layers is None or not layers.temporal_elements:
        return ()
    conv = layers.conv_elements * CONV_BYTES
    own = (cost.state_bytes - conv) // layers.temporal_elements
    checkpoint = layers.temporal_elements + layers.scale_elements * own + conv
    return (
        *(
            StateType(name, f"--mamba-ssm-dtype {name}", layers.temporal_elements * size + conv)
            for name, size in (("float32", 4), ("bfloat16", 2))
        ),
        StateType("int8 checkpoint", "--enable-int8-mamba-checkpoint", checkpoint, True),
    )
