"""How evenly hits fall over a run and over sessions."""

from __future__ import annotations

from lab.cpu_cache import EXAMPLE_COST
from lab.spread import WINDOW, Spread
from sglang.srt.mem_cache.marconi.advice.load.served import Served


def spread(*served: tuple[str | None, int, int]) -> Spread:
    """Of requests: session, prompt, tokens that hit."""
    found = Spread(EXAMPLE_COST)
    for session, tokens, hit in served:
        found.add(Served(tokens, hit, session=session))
    return found


def test_who_misses_and_who_never_hits():
    starved = [("a", 100 * turn, 0) for turn in range(1, 6)]
    served_well = [("b", 100 * turn, 100 * (turn - 1)) for turn in range(1, 6)]
    row = spread(*starved, *served_well, ("c", 50, 0), (None, 70, 0)).as_row()
    assert row["never_hit"] == 0.5
    # The first turn has nothing to hit: three misses of one session follow on another.
    assert row["miss_after_miss"] == 1.0
    assert row["longest_miss_streak"] == 4
    assert row["uncached_tokens"] == {"p50": 100, "p95": 445}


def test_half_of_the_turn_before_is_a_hit_and_ends_a_streak():
    turns = [("a", 100, 0), ("a", 200, 49), ("a", 300, 100), ("a", 400, 0), ("a", 500, 0)]
    row = spread(*turns).as_row()
    assert row["longest_miss_streak"] == 2
    assert row["miss_after_miss"] == 0.5
    assert row["never_hit"] == 0.0


def test_the_worst_stretch_is_of_whole_stretches():
    good = [(None, 100, 90)] * WINDOW
    bad = [(None, 100, 10)] * WINDOW
    row = spread(*good, *bad, (None, 100, 0)).as_row()
    wanted = EXAMPLE_COST.flops(0, 10) / EXAMPLE_COST.flops(0, 100)
    assert abs(row["worst_window"] - wanted) < 1e-9
    assert spread(*good[:-1]).as_row()["worst_window"] is None


def test_without_sessions_nothing_is_said_of_them():
    row = spread((None, 100, 0)).as_row()
    assert row["never_hit"] is row["miss_after_miss"] is row["longest_miss_streak"] is None
    assert Spread(EXAMPLE_COST).as_row()["uncached_tokens"] == {"p50": 0, "p95": 0}
