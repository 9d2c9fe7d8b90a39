"""All figures, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pictures.alphas import alpha_sweep
from pictures.by_memory import cache_size, contention
from pictures.common import Absent, Picture
from pictures.compared import against_lru, against_vllm, first_token
from pictures.label_sweeps import arrivals, models
from pictures.lengths import by_length
from pictures.losses import token_losses
from pictures.rows import Row
from pictures.style import drawing

FIGURES: tuple[Callable[[Sequence[Row]], Picture | Absent], ...] = (
    cache_size,
    token_losses,
    alpha_sweep,
    against_vllm,
    against_lru,
    first_token,
    by_length,
    contention,
    models,
    arrivals,
)


def draw_all(rows: Sequence[Row]) -> tuple[list[Picture], list[Absent]]:
    """Every figure that the rows give, and those that they do not."""
    with drawing():
        drawn = [make(rows) for make in FIGURES]
    pictures = [one for one in drawn if isinstance(one, Picture)]
    return pictures, [one for one in drawn if isinstance(one, Absent)]
