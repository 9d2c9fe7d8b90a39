"""Draws docs/images/eviction.svg: one eviction decision, scored by the code that serves.

python docs/draw_eviction.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["svg.hashsalt"] = "eviction"
import matplotlib.pyplot as plt
from sglang.srt.marconi_utils import cost_by_name
from sglang.srt.mem_cache.marconi.eviction.savings import SurvivingSavings, flop_efficiency
from sglang.srt.mem_cache.marconi.eviction.utility import bounds, normalise, recency
from sglang.srt.mem_cache.marconi.prefix import CachedPrefix, Pool

NOW, ALPHA = 100, 0.5
MODEL = "Qwen3-Next-80B-A3B-Instruct"
TEXT, TITLE = 16, 18
RECENCY, EFFICIENCY, VICTIM, PLAIN = "#4C78A8", "#F58518", "#D62728", "#555555"


@dataclass(frozen=True)
class Drawn:
    """A node of the example: its prefix and its place in the picture."""

    name: str
    x: float
    parent: str | None
    prefix: CachedPrefix
    note: str = ""


def node(
    name: str,
    x: float,
    parent: Drawn | None,
    depth: int,
    last_access: int,
    *,
    children: int = 0,
    has_state: bool = True,
    locked: bool = False,
    fork_at: int | None = None,
    note: str = "",
) -> Drawn:
    above = 0 if parent is None else parent.prefix.depth
    reuse = 0
    if parent is not None:
        reuse = parent.prefix.depth if parent.prefix.has_state else parent.prefix.reuse_from
    prefix = CachedPrefix(
        id=0,
        order=0,
        depth=depth,
        segment_from=above,
        exclusive_from=above if fork_at is None else fork_at,
        reuse_from=reuse,
        children=children,
        has_state=has_state,
        is_leaf=children == 0 and not locked,
        state_locked=locked,
        last_access=last_access,
    )
    return Drawn(name, x, None if parent is None else parent.name, prefix, note)


def example() -> list[Drawn]:
    system = node("system prompt", 2.0, None, 2000, 40, children=3, note="fork: goes last")
    chat_1 = node("chat, turn 1", 0.15, system, 2600, 90, children=1)
    chat_2 = node("chat, turn 2", 0.15, chat_1, 3400, 99)
    agent = node("agent, 30k tokens", 2.0, system, 30000, 60)
    running = node("running request", 3.85, system, 5000, 98, locked=True, note="locked: never")
    once = node("one-off prompt", 5.0, None, 1500, 93)
    return [system, chat_1, chat_2, agent, running, once]


def main() -> None:
    drawn = example()
    savings = SurvivingSavings(cost_by_name(MODEL))
    candidates = [d for d in drawn if d.prefix.may_leave(Pool.STATE) and d.prefix.children <= 1]
    recencies = [recency(NOW, d.prefix.last_access) for d in candidates]
    efficiencies = [flop_efficiency(savings, d.prefix) for d in candidates]
    parts = {
        d.name: (normalise(r, *bounds(recencies)), ALPHA * normalise(e, *bounds(efficiencies)))
        for d, r, e in zip(candidates, recencies, efficiencies, strict=True)
    }
    victim = min(parts, key=lambda name: sum(parts[name]))
    oldest = min(candidates, key=lambda d: d.prefix.last_access).name

    figure, (tree, bars) = plt.subplots(
        2, 1, figsize=(12.5, 11.5), height_ratios=[1.75, 1], constrained_layout=True
    )
    figure.get_layout_engine().set(hspace=0.08)
    draw_tree(tree, drawn, victim)
    draw_bars(bars, parts, victim, oldest)
    out = Path(__file__).parent / "images" / "eviction.svg"
    figure.savefig(out, metadata={"Date": None})
    print(f"{out.name}: evicts {victim!r}; LRU would evict {oldest!r}")


def draw_tree(axes: plt.Axes, drawn: list[Drawn], victim: str) -> None:
    places = {None: (2.6, 0.0)} | {d.name: (d.x, level(d, drawn)) for d in drawn}
    for d in drawn:
        (x0, y0), (x1, y1) = places[d.parent], places[d.name]
        axes.plot([x0, x1], [-y0, -y1], color="#BBBBBB", zorder=1)
    axes.text(2.6, 0.0, "root", ha="center", va="center", fontsize=TEXT, bbox=box("#EEEEEE"))
    for d in drawn:
        x, y = places[d.name]
        colour = VICTIM if d.name == victim else PLAIN
        text = f"{d.name}\n{d.prefix.depth:,} tokens\nused {NOW - d.prefix.last_access} ticks ago"
        if d.note:
            text += f"\n{d.note}"
        axes.text(
            x,
            -y,
            text,
            ha="center",
            va="center",
            fontsize=TEXT,
            color=colour,
            zorder=2,
            bbox=box("white", colour),
        )
    axes.set_title("Cached prefixes, each with a recurrent state at its end", fontsize=TITLE)
    axes.set_xlim(-0.7, 5.9)
    axes.set_ylim(-3.45, 0.25)
    axes.axis("off")


def level(d: Drawn, drawn: list[Drawn]) -> int:
    parents = {other.name: other for other in drawn}
    return 1 if d.parent is None else 1 + level(parents[d.parent], drawn)


def box(face: str, edge: str = "#888888") -> dict[str, object]:
    return {"boxstyle": "round,pad=0.35", "facecolor": face, "edgecolor": edge}


def draw_bars(
    axes: plt.Axes, parts: dict[str, tuple[float, float]], victim: str, oldest: str
) -> None:
    names = sorted(parts, key=lambda name: sum(parts[name]), reverse=True)
    recencies = [parts[name][0] for name in names]
    axes.barh(names, recencies, color=RECENCY, label="recency")
    axes.barh(
        names,
        [parts[name][1] for name in names],
        left=recencies,
        color=EFFICIENCY,
        label=f"{ALPHA} × FLOPs saved per byte",
    )
    for i, name in enumerate(names):
        notes = ["evicted"] * (name == victim) + ["LRU would evict this"] * (name == oldest)
        axes.text(
            sum(parts[name]) + 0.02,
            i,
            ", ".join(notes),
            va="center",
            fontsize=TEXT,
            color=VICTIM if name == victim else PLAIN,
        )
    axes.set_xlim(0, 1.1)
    axes.tick_params(labelsize=TEXT)
    axes.set_xlabel("utility S(n), lowest goes first", fontsize=TEXT)
    axes.set_title(f"Policy 2 scores the unlocked candidates, alpha = {ALPHA}", fontsize=TITLE)
    axes.legend(fontsize=TEXT, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
