"""The scores: recency, normalisation, and their sum with FLOP efficiency."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def recency(now: int, last_access: int) -> float:
    """``1 / (now - last_access)`` on the logical clock, in 1/ticks.

    A stamp is at least one tick old when a decision is made; a younger one counts as one tick, so
    that a decision never divides by zero.
    """
    return 1.0 / max(now - last_access, 1)


def bounds(values: Iterable[float]) -> tuple[float, float]:
    """Lowest and highest of ``values``, which must not be empty."""
    low = high = None
    for value in values:
        if low is None or value < low:
            low = value
        if high is None or value > high:
            high = value
    if low is None or high is None:
        raise ValueError("bounds of no values")
    return low, high


def normalise(value: float, low: float, high: float) -> float:
    """``value`` min-max scaled to [0, 1] (paper, section 4.2); 1 where all candidates are equal."""
    return (value - low) / (high - low) if high > low else 1.0


def utilities(
    last_accesses: Sequence[int], efficiencies: Sequence[float], now: int, eff_weight: float
) -> list[float]:
    """``S(n) = recency(n) + alpha * flop_efficiency(n)``, both normalised over the candidates.

    Args:
        last_accesses: logical tick of each candidate's last access.
        efficiencies: FLOPs saved per byte of each candidate.
        now: logical tick of the decision.
        eff_weight: alpha, >= 0.

    Returns:
        One score a candidate, in the order given, each in [0, 1 + alpha]; the lowest is evicted.
    """
    if not last_accesses:
        return []
    recencies = [recency(now, last_access) for last_access in last_accesses]
    recency_low, recency_high = bounds(recencies)
    efficiency_low, efficiency_high = bounds(efficiencies)
    return [
        eff_weight * normalise(efficiency, efficiency_low, efficiency_high)
        + normalise(age, recency_low, recency_high)
        for efficiency, age in zip(efficiencies, recencies, strict=True)
    ]
