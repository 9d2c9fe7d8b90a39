"""Rows that follow from other rows: means, most and least over cells. They are kept in no file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from rows.cells import cells, size_id
from rows.store import Row, Rows

#: Differences below this print as nothing, in points.
NOTHING = 0.05

#: Columns of the listed policies that are no policy of their own or know the future.
_NO_RIVALS = ("policy_3", "clairvoyant", "superseded_best_split", "best_split", "memory_gib")


def with_summaries(rows: Rows) -> Rows:
    """The same rows, and those of part ``summary`` that they give."""
    return Rows({**rows.by_id, **{row["id"]: row for row in summaries(rows)}})


def summaries(rows: Rows) -> Iterator[Row]:
    """Every row of part ``summary``."""
    for name in dict.fromkeys(row["policy"] for row in rows.part("policies")):
        summary = _policy(rows, name)
        if summary:
            yield _row(name, summary)
    for table in dict.fromkeys(row["id"].split("/")[1] for row in rows.part("listed")):
        yield _row(f"listed-{table}", _listed(rows, table))
    yield from _speeds(rows)
    for write_policy in dict.fromkeys(
        str(row["write_policy"]) for row in rows.part("host") if row["policy"] == "policy-3"
    ):
        yield _row(f"host-{write_policy.replace('_', '-')}", _host(rows, write_policy))
    yield _row("fork", _fork(rows))
    yield _row("shadow", _shadow(rows))


def _row(name: str, values: Mapping[str, object]) -> Row:
    return {"part": "summary", "id": f"summary/{name}", **values}


def _policy(rows: Rows, name: str) -> dict[str, float]:
    """A policy over the fifteen cells, beside stock LRU and the clairvoyant of fixed pools."""
    saved, hits = (_over_cells(rows, name, key) for key in ("flops_saved", "token_hit_rate"))
    lru = _over_cells(rows, "lru", "flops_saved")
    seer = _over_cells(rows, "clairvoyant", "flops_saved")
    if not (saved and lru):
        return {}
    gains = [ours - theirs for ours, theirs in zip(saved, lru, strict=True)]
    values = {
        "mean": fmean(saved),
        "cells": len(saved),
        "gain_mean": fmean(gains),
        "gain_most": max(gains),
        "gain_least": min(gains),
        "loss_most": max(0.0, -min(gains)),
        "cells_ahead": sum(gain >= NOTHING for gain in gains),
        "cells_behind": sum(gain <= -NOTHING for gain in gains),
    }
    weights = _over_cells(rows, name, "weight")
    if weights:
        values["cells_at_weight_0"] = weights.count(0.0)
    if hits:
        values["hit_mean"] = fmean(hits)
    if seer:
        pairs = zip(saved, seer, strict=True)
        values["cells_over_clairvoyant"] = sum(ours - most >= NOTHING for ours, most in pairs)
    return values


def _over_cells(rows: Rows, name: str, key: str) -> list[float]:
    """What a policy has in each cell; nothing where one is missing."""
    ids = [f"policies/{trace}/{capacity}/{name}" for trace, capacity, _ in cells()]
    if not all(rows.has(identity, key) for identity in ids):
        return []
    return [rows.number(identity, key) for identity in ids]


def _listed(rows: Rows, table: str) -> dict[str, object]:
    """The mean of each column, and the best policy of others."""
    ids = [f"listed/{table}/{trace}/{capacity}" for trace, capacity, _ in cells()]
    if not all(identity in rows.by_id for identity in ids):
        return {}
    keys = [key for key, value in rows.by_id[ids[0]].items() if isinstance(value, int | float)]
    means: dict[str, object] = {
        key: fmean(rows.number(identity, key) for identity in ids)
        for key in keys
        if key != "memory_gib" and all(rows.has(identity, key) for identity in ids)
    }
    rivals = {
        key: mean
        for key, mean in means.items()
        if not key.startswith(_NO_RIVALS) and isinstance(mean, float)
    }
    if rivals:
        best = max(rivals, key=lambda key: rivals[key])
        means |= {"best_other": rivals[best], "best_other_name": best}
    return means


def _speeds(rows: Rows) -> Iterator[Row]:
    for part, group, keys in (
        ("candidates-speed", "policy", ("step_us", "decision_us", "worst_ms", "bytes", "k")),
        ("staircase", "part", ("k_mean", "k_most")),
    ):
        found: dict[str, list[Row]] = {}
        for row in rows.part(part):
            found.setdefault(str(row[group]), []).append(row)
        for name, members in found.items():
            ending = "" if name == part else f"-policy-{name}"
            yield _row(part + ending, _span(members, keys))


def _span(members: Sequence[Row], keys: Sequence[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for key in keys:
        numbers = [row[key] for row in members if key in row]
        if numbers:
            values |= {f"{key}_least": min(numbers), f"{key}_most": max(numbers)}
    return values


def _host(rows: Rows, write_policy: str) -> dict[str, float]:
    """Seconds saved above a host tier: means over the cells of all that are compared.

    ``way`` is the share that policy 3 goes of the way from stock under ``write_through``, which is
    SGLang's default, to the clairvoyant with the memory of both. ``*_25`` are copies at half of the
    rate.
    """
    saved: dict[str, dict[str, float]] = {}
    slower: dict[str, dict[str, float]] = {}
    for row in rows.part("host"):
        name, cell = str(row["policy"]), "/".join(str(row["id"]).split("/")[1:4])
        if (row["write_policy"], name) == ("write_through", "lru"):
            saved.setdefault("default", {})[cell] = float(row["seconds_saved"])
        if row["write_policy"] in (write_policy, "none"):
            saved.setdefault(name, {})[cell] = float(row["seconds_saved"])
            paid = row["flops_saved"] - row["seconds_saved"]
            slower.setdefault(name, {})[cell] = row["seconds_saved"] - paid
    lru, ours, default, most = (
        saved.get(name, {}) for name in ("lru", "policy-3", "default", "clairvoyant")
    )
    compared = sorted(lru.keys() & ours.keys() & default.keys() & most.keys())
    if not compared:
        return {}
    gains = [ours[cell] - lru[cell] for cell in compared]
    return {
        "lru": fmean(lru[cell] for cell in compared),
        "policy_3": fmean(ours[cell] for cell in compared),
        "clairvoyant": fmean(most[cell] for cell in compared),
        "way": 100
        * sum(ours[cell] - default[cell] for cell in compared)
        / sum(most[cell] - default[cell] for cell in compared),
        "lru_25": fmean(slower["lru"][cell] for cell in compared),
        "policy_3_25": fmean(slower["policy-3"][cell] for cell in compared),
        "cells": len(compared),
        "gain_most": max(gains),
        "loss_most": max(0.0, -min(gains)),
    }


def _shadow(rows: Rows) -> dict[str, float]:
    """How far the shadow is from the cache that serves, in FLOPs saved of the same cells."""
    apart = [
        abs(row[key]["flops_saved"] - rows.number(identity, "flops_saved"))
        for trace, capacity, gib in cells()
        if (row := rows.by_id.get(f"by-memory/{trace}/{size_id(gib)}")) is not None
        for key in ("lru", "policy_3")
        if rows.has(
            identity := f"policies/{trace}/{capacity}/{key.replace('_', '-')}", "flops_saved"
        )
    ]
    return {"most_apart": max(apart), "mean_apart": fmean(apart)} if apart else {}


def _fork(rows: Rows) -> dict[str, float]:
    """What policies gain over the LRU of 0.5.4, and what that LRU loses to today's."""
    members = rows.part("fork")
    values: dict[str, float] = {}
    for key in ("policy_2_weight_0_5", "policy_2_states_weight_0_5"):
        gains = [row[key] - row["lru"] for row in members if key in row]
        if gains:
            values |= {f"{key}_gain_most": max(gains), f"{key}_gain_least": min(gains)}
    later = [
        rows.number(f"policies/{row['trace']}/{row['capacity']}/lru", "flops_saved") - row["lru"]
        for row in members
        if rows.has(f"policies/{row['trace']}/{row['capacity']}/lru", "flops_saved")
    ]
    if later:
        values |= {"lru_behind_most": max(later), "lru_behind_least": min(later)}
    return values
