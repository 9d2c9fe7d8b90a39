"""Policy 3 with one of its ingredients taken out, to see what that is worth."""

from __future__ import annotations

from collections.abc import Callable

from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from sglang.srt.mem_cache.marconi.eviction.value import PrefixClass, ReuseOdds, ValuePolicy
from sglang.srt.mem_cache.marconi.eviction.value.evidence import Evidence
from sglang.srt.mem_cache.marconi.eviction.value.odds import prefix_class
from sglang.srt.mem_cache.marconi.eviction.value.openings import ALONE
from sglang.srt.mem_cache.marconi.hints import Hint
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, HostPool, Pool

from policies.registry import CacheArguments, PolicyArguments, Recipe, policy_family


class FixedOdds(ReuseOdds):
    """The prior: superseded states first, then LRU weighted by cost."""

    def reached(self, kind: PrefixClass, level: int) -> None: ...

    def survived(self, kind: PrefixClass, level: int, count: int = 1) -> None: ...

    def used(self, kind: PrefixClass, level: int) -> None: ...

    def lost_sight(self, kind: PrefixClass, level: int) -> None: ...

    def told(self, kind: PrefixClass, level: int, hint: Hint | None) -> None: ...


class RoleOdds(ReuseOdds):
    """All prefixes of a role are alike, whatever their history and opening."""

    def reached(self, kind: PrefixClass, level: int) -> None:
        super().reached(_without_history(kind), level)

    def survived(self, kind: PrefixClass, level: int, count: int = 1) -> None:
        super().survived(_without_history(kind), level, count)

    def used(self, kind: PrefixClass, level: int) -> None:
        super().used(_without_history(kind), level)

    def lost_sight(self, kind: PrefixClass, level: int) -> None:
        super().lost_sight(_without_history(kind), level)

    def told(self, kind: PrefixClass, level: int, hint: Hint | None) -> None:
        super().told(_without_history(kind), level, hint)

    def chance(self, kind: PrefixClass, level: int) -> float:
        return super().chance(_without_history(kind), level)

    def rates_within(self, kind: PrefixClass, level: int) -> tuple[float, float]:
        return super().rates_within(_without_history(kind), level)


def _without_history(kind: PrefixClass) -> PrefixClass:
    return prefix_class(kind.role, hint=kind.hint)


class FadingEvidence(Evidence):
    """Fades, and is never dropped."""

    def holds(self, level: int) -> bool:
        return True


class NoReturnsPolicy(ValuePolicy):
    """Forgets what was evicted."""

    def on_return(self, id: int, now: int) -> None: ...


class NoCostPolicy(ValuePolicy):
    """Odds alone."""

    def _flops(self, prefix: CachedPrefix) -> float:
        return float(prefix.has_state)

    def _bytes(self, prefix: CachedPrefix, pool: Pool | HostPool) -> float:
        return 1.0


class NoQueuePolicy(ValuePolicy):
    """Does not know who waits."""

    on_queue = None  # type: ignore[assignment]


class NoHintsPolicy(ValuePolicy):
    """Does not know what clients say."""

    on_hint = None  # type: ignore[assignment]


class NoOpeningsPolicy(ValuePolicy):
    """Does not tell applications apart."""

    def _history(self, prefix: CachedPrefix) -> tuple[int, int]:
        turns, _ = super()._history(prefix)
        return turns, ALONE


def _fixed(cost: CostModel, elastic: bool) -> ValuePolicy:
    return ValuePolicy(cost, shared=elastic, odds=FixedOdds())


ABLATIONS: dict[str, Callable[[CostModel, bool], ValuePolicy]] = {
    "no-learning": _fixed,
    "no-history": lambda cost, elastic: ValuePolicy(cost, shared=elastic, odds=RoleOdds()),
    "no-shifts": lambda cost, elastic: ValuePolicy(
        cost, shared=elastic, odds=ReuseOdds(FadingEvidence)
    ),
    "no-returns": lambda cost, elastic: NoReturnsPolicy(cost, shared=elastic),
    "no-queue": lambda cost, elastic: NoQueuePolicy(cost, shared=elastic),
    "no-hints": lambda cost, elastic: NoHintsPolicy(cost, shared=elastic),
    "no-openings": lambda cost, elastic: NoOpeningsPolicy(cost, shared=elastic),
    "no-cost": lambda cost, elastic: NoCostPolicy(cost, shared=elastic),
    "state": lambda cost, elastic: ValuePolicy(cost, frozenset({Pool.STATE})),
}


@policy_family(
    "value[:WITHOUT]",
    "policy 3; WITHOUT is no-learning, no-history, no-shifts, no-returns, no-queue, no-hints, "
    "no-openings, no-cost, state; value:seconds weighs FLOPs by the time that the run's model says "
    "they take",
)
def value(arguments: PolicyArguments) -> Recipe:
    without = arguments.text()
    if without is None:
        return lambda context: CacheArguments(ValuePolicy(context.cost, shared=context.elastic))
    if without == "seconds":
        return lambda context: CacheArguments(
            ValuePolicy(context.seconds or context.cost, shared=context.elastic)
        )
    if without not in ABLATIONS:
        raise arguments.error(f"WITHOUT one of {', '.join(ABLATIONS)}, seconds")
    return lambda context: CacheArguments(ABLATIONS[without](context.cost, context.elastic))
