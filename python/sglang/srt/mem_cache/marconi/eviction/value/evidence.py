"""How many prefixes came to an age and how many were used there, as long as that still holds.

Traffic changes: at night sessions come back after fewer requests than by day. So evidence fades,
and whenever ``LATEST`` more prefixes came to a level of age, they are set beside those before.
Where the shares that were used differ by more than chance explains, the earlier ones are dropped:
waiting for them to fade, a cache keeps what comes back no more. (Bifet and Gavalda, "Learning from
Time-Changing Data with Adaptive Windowing", SDM 2007, drop what is older likewise.)
"""

from __future__ import annotations

#: Levels of age; the last holds all that are older.
LEVELS = 25
#: The evidence at a level is halved when it rests on so many prefixes, or a few more.
MEMORY = 1000
#: Prefixes that are set beside those before: enough to tell a third from a tenth.
LATEST = 64
#: Standard deviations by which they must differ. If uses did not depend on each other, at most one
#: look in twenty would find so much by chance.
CONTRADICTING = 2.0
#: Nothing is certain.
MOST_CHANCE = 0.999


class Evidence:
    """Counts by level (0 to ``LEVELS - 1``), of prefixes that are taken for alike.

    A prefix counts when it comes to a level, and its use when that happens. If both counted only
    once it is used or has outgrown the level, nothing but uses would be seen of old ages at first.
    So the uses of a while are in part those of prefixes that came before it.

    All methods are O(1), the properties O(LEVELS).
    """

    __slots__ = ("_before", "_latest", "_latest_used", "_used_before")

    def __init__(self) -> None:
        self._before = [0.0] * LEVELS
        self._used_before = [0.0] * LEVELS
        self._latest = [0.0] * LEVELS
        self._latest_used = [0.0] * LEVELS

    @property
    def reached(self) -> list[float]:
        """Prefixes that came to each level; at least those that were used there.

        One that was lost sight of counts half, also where its coming was dropped or never counted.
        """
        counts = zip(self._before, self._latest, self.used, strict=True)
        return [max(before + latest, used) for before, latest, used in counts]

    @property
    def used(self) -> list[float]:
        """Prefixes that were used at each level."""
        counts = zip(self._used_before, self._latest_used, strict=True)
        return [before + latest for before, latest in counts]

    def come(self, level: int, count: float) -> bool:
        """So many more came to ``level``; below 0, fewer, down to none.

        Returns:
            Whether the earlier evidence at that level was dropped.
        """
        latest = self._latest[level] + count
        if count < 0:
            latest = max(latest, -self._before[level])
        self._latest[level] = latest
        return latest >= LATEST and self.weigh(level)

    def use(self, level: int) -> None:
        """One was used at ``level``."""
        self._latest_used[level] += 1

    def chance(self, level: int, expected: float, weight: float) -> float:
        """Share that was used at ``level``, at most ``MOST_CHANCE``.

        Args:
            expected: the share to be expected if nothing were known.
            weight: prefixes that this counts as.
        """
        used = self._used_before[level] + self._latest_used[level]
        reached = max(self._before[level] + self._latest[level], used)
        return min((used + weight * expected) / (reached + weight), MOST_CHANCE)

    def holds(self, level: int) -> bool:
        """Whether uses were as frequent while the latest came as before, but for chance."""
        before, latest = self._before[level], self._latest[level]
        used_before, used = self._used_before[level], self._latest_used[level]
        # More uses than prefixes are uses of those before.
        if not before or used > latest:
            return True
        excess = used - used_before * latest / before
        # Of many that are used with a small chance each, the variance is the mean. The chance is
        # that of all together, for both differ from it; of few, two more uses are still chance.
        variance = max((used_before + used) * latest / before, 1.0)
        return excess * excess <= CONTRADICTING * CONTRADICTING * variance

    def weigh(self, level: int) -> bool:
        """Drop what is earlier than the latest if it does not hold, and say whether it did not."""
        holds = self.holds(level)
        before, used_before = self._latest[level], self._latest_used[level]
        if holds:
            before += self._before[level]
            used_before += self._used_before[level]
        if before >= MEMORY:
            before /= 2
            used_before /= 2
        self._before[level], self._used_before[level] = before, used_before
        self._latest[level] = self._latest_used[level] = 0.0
        return not holds
