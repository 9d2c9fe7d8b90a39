"""The scores: recency, normalisation, and their sum with FLOP efficiency."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Times 1 + alpha: difference of two normalised recencies that no rounding undoes.
_TELLING = 2.0**-46


def recency(now: int, last_access: int) -> float:
    """``1 / (now - last_access)`` on the logical clock, in 1/ticks.

    A stamp is at least one tick old when a decision is made; a younger one counts as one tick, so
    that a decision never divides by zero.
    """
    age = now - last_access
    return 1.0 / age if age > 1 else 1.0


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


@dataclass(slots=True)
class Utility:
    """``S(n) = recency(n) + alpha * flop_efficiency(n)``, both normalised over the candidates.

    It never falls as last access or efficiency rises, in floating point too: each step of the
    arithmetic is rounded, and rounding keeps order.

    Attributes:
        now: logical tick of the decision.
        eff_weight: alpha, finite and >= 0.
        recency_low, recency_high: recencies of the candidates accessed first and last, in 1/ticks.
        efficiency_low, efficiency_high: bounds of the candidates' FLOPs saved per byte.
    """

    now: int
    eff_weight: float
    recency_low: float
    recency_high: float
    efficiency_low: float
    efficiency_high: float

    def tells_ticks(self, last: int) -> bool:
        """Whether of two candidates of one efficiency the later accessed surely scores higher.

        Ages of a and a - 1 ticks part recencies by more than 1 / a^2, and that is to exceed what
        floating point takes off a sum of up to 1 + alpha, some 2^-52 of it.

        Args:
            last: latest last access of the candidates; what is not a tick old yet counts as one.
        """
        least = self.recency_low * self.recency_low
        return last < self.now and least > (1.0 + self.eff_weight) * _TELLING

    def score(self, last_access: int, efficiency: float) -> float:
        """In [0, 1 + alpha]; the lowest is evicted."""
        return self.eff_weight * normalise(
            efficiency, self.efficiency_low, self.efficiency_high
        ) + normalise(recency(self.now, last_access), self.recency_low, self.recency_high)

    def scores(self, last_accesses: Sequence[int], efficiencies: Iterable[float]) -> list[float]:
        """The :meth:`score` of many, to the last bit, without a call for each.

        Args:
            last_accesses: of each candidate, ascending, not empty.
            efficiencies: of each candidate.
        """
        now, eff_weight = self.now, self.eff_weight
        recent, efficient = self.recency_low, self.efficiency_low
        recencies = self.recency_high - recent
        efficiency_span = self.efficiency_high - efficient
        candidates = zip(last_accesses, efficiencies, strict=True)
        if not (recencies > 0.0 and efficiency_span > 0.0 and last_accesses[-1] < now):
            return [self.score(*candidate) for candidate in candidates]
        return [
            eff_weight * ((efficiency - efficient) / efficiency_span)
            + (1.0 / (now - last_access) - recent) / recencies
            for last_access, efficiency in candidates
        ]


def utilities(
    last_accesses: Sequence[int], efficiencies: Sequence[float], now: int, eff_weight: float
) -> list[float]:
    """The score of every candidate, in the order given.

    Args:
        last_accesses: logical tick of each candidate's last access.
        efficiencies: FLOPs saved per byte of each candidate.
        now: logical tick of the decision.
        eff_weight: alpha, finite and >= 0.
    """
    if not last_accesses:
        return []
    recency_bounds = bounds(recency(now, last_access) for last_access in last_accesses)
    score = Utility(now, eff_weight, *recency_bounds, *bounds(efficiencies)).score
    return [score(*candidate) for candidate in zip(last_accesses, efficiencies, strict=True)]
