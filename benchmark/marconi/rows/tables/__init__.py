"""All tables by the names that pages call them."""

from __future__ import annotations

from collections.abc import Callable

from rows.store import Rows
from rows.tables import hints, host, lab, listed, live, load, matrix, seconds

TABLES: dict[str, Callable[[Rows], str]] = {
    "policies": lab.policies,
    "policies-hits": lab.policies_hits,
    "policies-others": lab.policies_others,
    "policies-weights": lab.policies_weights,
    "policies-summary": lab.policies_summary,
    "policies-lost": lab.policies_lost,
    "policies-spread": lab.policies_spread,
    "by-memory": lab.by_memory,
    "admission": lab.admission,
    "splits": lab.splits,
    "models": lab.models,
    "unified": lab.unified,
    "staircase": lab.staircase,
    "fork": lab.fork,
    "host-saved": host.saved,
    "seconds": seconds.weighed,
    "host-means": host.means,
    "host-copied": host.copied,
    "load-policies": load.policies,
    "load-orders": load.orders,
    "hints": hints.hints,
    "listed-two-pools": listed.two_pools,
    "listed-one-memory": listed.one_memory,
    "listed-bounds": listed.bounds,
    "listed-ingredients-two-pools": listed.ingredients_two_pools,
    "listed-ingredients-one-memory": listed.ingredients_one_memory,
    "listed-readings": listed.readings,
    "tree-speed": live.tree_speed,
    "candidates-speed": live.candidates_speed,
    "busy-server": live.busy_server,
    "live-chats": live.live("live-chats"),
    "live-agents": live.live("live-agents"),
    "tuning-gain": live.tuning_gain,
    "demo": live.demo,
    "matrix": matrix.matrix,
    "matrix-pairs": matrix.matrix_pairs,
}
