"""What became of the tokens of prompts: hit, lost to an eviction, or never kept."""

from __future__ import annotations

from typing import Any

from rows.cells import CELLS
from rows.store import Rows

NAME = "where-tokens-are-lost"
_POLICIES = {"lru": "stock LRU", "policy-2": "policy 2", "policy-3": "policy 3"}
#: Colour, hatch and words of each part of a bar.
_PARTS: dict[str, tuple[str, str, str]] = {
    "token_hit_rate": ("#0072b2", "", "hit"),
    "lost_state_evicted": ("#e69f00", "///", "lost: state evicted, its KV still there"),
    "lost_kv_evicted": ("#d55e00", "", "lost: KV evicted"),
    "lost_never_admitted": ("#cc79a7", "...", "lost: no state was ever kept"),
}


def data(rows: Rows) -> dict[str, Any]:
    """By trace and policy, at the middle size: each part's share of the input tokens, in %.

    Raises:
        ValueError: no trace has counted losses under every policy.
    """
    found: dict[str, Any] = {}
    for trace in CELLS:
        ids = {name: f"policies/{trace}/middle/{name}" for name in _POLICIES}
        if all(rows.has(identity, key) for identity in ids.values() for key in _PARTS):
            found[trace] = {
                name: {key: round(rows.number(identity, key), 2) for key in _PARTS}
                for name, identity in ids.items()
            }
    if not found:
        raise ValueError("no row of part 'policies' says where tokens were lost")
    return found


def message(found: dict[str, Any]) -> str:
    """What the picture shows, as far as its numbers say it."""
    evicted = ("lost_state_evicted", "lost_kv_evicted")
    lru, value = (
        sum(sum(policies[name][key] for key in evicted) for policies in found.values()) / len(found)
        for name in ("lru", "policy-3")
    )
    return f"Evictions cost {lru:.0f} % of the tokens under stock LRU, {value:.0f} % under policy 3"


def draw(found: dict[str, Any]) -> Any:
    """Bars, a group a trace."""
    from matplotlib.figure import Figure

    bars = [(trace, name) for trace, policies in found.items() for name in policies]
    figure = Figure(figsize=(9.2, 1.75 + 0.36 * len(bars) + 0.2 * len(found)))
    axis: Any = figure.subplots()
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.3, right=0.97, top=1 - 1.2 / height, bottom=0.55 / height)
    figure.suptitle(
        message(found),
        **{"x": 0.02, "y": 1 - 0.12 / height, "ha": "left", "va": "top"},
        **{"fontsize": 13, "fontweight": "bold"},
    )
    labels, places = [], []
    place = 0.0
    for trace, policies in found.items():
        for name, parts in policies.items():
            left = 0.0
            for key, (colour, hatch, _) in _PARTS.items():
                look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.6}
                axis.barh(place, parts[key], left=left, height=0.78, **look)
                if key == "token_hit_rate" and parts[key] > 6:
                    words = f"{parts[key]:.1f} %"
                    axis.text(1.2, place, words, color="white", va="center", fontsize=9)
                left += parts[key]
            first = name == next(iter(policies))
            labels.append(f"{trace}   {_POLICIES[name]}" if first else _POLICIES[name])
            places.append(place)
            place += 1.0
        place += 0.55
    axis.set_yticks(places, labels)
    axis.set_ylim(place - 1.0, -0.6)
    axis.set_xlim(0, 100)
    axis.grid(axis="x")
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("share of the prompts' tokens, %; the rest was never seen before")
    handles = [
        axis.barh(0, 0, color=colour, hatch=hatch, edgecolor="white", label=words)
        for colour, hatch, words in _PARTS.values()
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.01, 1 - 0.5 / height),
        ncols=2,
        frameon=False,
        fontsize=9.5,
    )
    return figure
