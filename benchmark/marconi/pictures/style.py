"""How each policy looks: a fixed colour and marker by name, the same in every picture.

A family of policies has one hue. Its variants (weights) differ in lightness and marker, so that a
greyscale print still tells them apart; the state-pool-only family has open markers.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.colors import to_hex, to_rgb

from pictures.rows import Row


@dataclass(frozen=True)
class Look:
    """Colour, marker, line style and name of one policy in a legend."""

    label: str
    colour: str
    marker: str
    line: Any = "-"
    open_marker: bool = False

    def as_line(self) -> dict[str, Any]:
        """Arguments of ``Axes.plot``."""
        return {
            "label": self.label,
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.line,
            "linewidth": 1.7,
            "markersize": 8.5 if self.open_marker else 6.5,
            "markerfacecolor": "none" if self.open_marker else self.colour,
            "markeredgecolor": self.colour,
        }


_FAMILIES = {
    "lru": Look("LRU (stock)", "#6b7585", "o"),
    "lru-python": Look("LRU (stock, Python core)", "#6b7585", "8", ":"),
    "server:1": Look("LRU (policy 1)", "#9aa3b2", ".", ":"),
    "sglang+": Look("SGLang+", "#6b7585", "o"),
    "vllm+": Look("vLLM+", "#a98467", "s"),
    "slru": Look("SLRU", "#1971c2", "<"),
    "lfu": Look("LFU", "#4dabf7", ">"),
    "tlru": Look("TLRU", "#364fc7", "p"),
    "cap": Look("cap", "#0c8599", "P"),
    "marconi": Look("Marconi", "#d9480f", "D"),
    "marconi-state": Look("Marconi, state pool", "#a61e4d", "D", "--", open_marker=True),
    "marconi-rank": Look("Marconi, ranks", "#e0a100", "D", "-."),
    "marconi-rank-state": Look("Marconi, ranks, state pool", "#b08d00", "D", ":", open_marker=True),
    "seglen": Look("segment length", "#2b8a3e", "X"),
    "seglen-state": Look("segment length, state pool", "#2b8a3e", "X", "--", open_marker=True),
    "gdsf": Look("GDSF", "#6741d9", "h"),
    "gdsf-state": Look("GDSF, state pool", "#6741d9", "h", "--", open_marker=True),
    "superseded": Look("superseded first", "#e64980", "H"),
    "server:3": Look("policy 3", "#087f5b", "*"),
    "value": Look("policy 3", "#087f5b", "*"),
    "clairvoyant": Look("clairvoyant", "#111111", "x", (0, (5, 2))),
    "infinite": Look("infinite cache", "#111111", "", (0, (1, 1.5))),
}
_SPARE = ("#c2255c", "#66a80f", "#7048e8", "#087f5b", "#b35900", "#5c7cfa")

#: By weight: marker, and how far the family's colour goes to white (> 0) or black (< 0).
_WEIGHTS = {
    0.0: ("d", 0.55),
    0.25: ("v", 0.4),
    0.5: ("D", 0.0),
    1.0: ("^", -0.25),
    2.0: ("*", -0.5),
}

OUTCOMES = {
    "hit": Look("hit", "#2f9e44", ""),
    "state_evicted": Look("lost: state evicted, KV alive", "#f08c00", "//"),
    "kv_evicted": Look("lost: KV evicted", "#c92a2a", "\\\\"),
    "never_admitted": Look("lost: never admitted", "#7950f2", "xx"),
    "new": Look("never seen before", "#dee2e6", ""),
    "unknown": Look("not hit, reason not counted", "#f1f3f5", ".."),
}
"""What became of a prompt's tokens; the ``marker`` is a bar's hatch."""

_SETTINGS = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
    "svg.hashsalt": "marconi",
}


def drawing() -> Any:
    """A context in which pictures get the report's common style."""
    return rc_context(_SETTINGS)


def look_of(row: Row) -> Look:
    """The look of a row's policy: by its family, then by its weight."""
    family = row.family
    base = family_look(row)
    if row.alpha is not None:
        return _weighted(base, row.alpha)
    if row.is_tuned:
        return Look(f"{base.label}, tuned", base.colour, "X")
    if family in _FAMILIES and family != row.policy and row.policy not in _FAMILIES:
        return Look(f"{base.label} {row.policy.partition(':')[2]}", base.colour, base.marker)
    return base


def family_look(row: Row) -> Look:
    """The look of a policy whatever its weight."""
    return _FAMILIES.get(row.family) or _unknown(row.policy)


def _weighted(base: Look, alpha: float) -> Look:
    nearest = min(_WEIGHTS, key=lambda weight: abs(weight - alpha))
    marker, shift = _WEIGHTS[nearest]
    return Look(
        f"{base.label}, α {alpha:g}",
        _mixed(base.colour, shift),
        marker if nearest == alpha else ".",
        base.line,
        base.open_marker,
    )


def _mixed(colour: str, shift: float) -> str:
    target = 1.0 if shift > 0 else 0.0
    return str(to_hex([part + (target - part) * abs(shift) for part in to_rgb(colour)]))


def _unknown(policy: str) -> Look:
    place = zlib.crc32(policy.encode()) % (len(_SPARE) * 4)
    return Look(policy, _SPARE[place % len(_SPARE)], "1234"[place // len(_SPARE)])


def order_of(row: Row) -> tuple[int, float, str]:
    """Sorting key of policies in legends and bars: as the families are listed, then by weight."""
    names = list(_FAMILIES)
    place = names.index(row.family) if row.family in names else len(names)
    return place, -1.0 if row.alpha is None else row.alpha, row.policy
