"""Parts that the simulator's rows make: policies, sizes, admission, models, the fork."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rows.cells import CELLS, MODEL, SIZES, cells, listed_sizes, size_id
from rows.part import TRACES, Command, Found, Part, Record, percent
from rows.store import Row

_CACHE = "python/sglang/srt/mem_cache"
#: What the simulator drives, and the simulator.
SHADOW_CODE = (
    "python/sglang/srt/marconi_utils.py",
    f"{_CACHE}/marconi/admission",
    f"{_CACHE}/marconi/advice",
    f"{_CACHE}/marconi/costs",
    f"{_CACHE}/marconi/eviction",
    f"{_CACHE}/marconi/hints.py",
    f"{_CACHE}/marconi/prefix.py",
    f"{_CACHE}/marconi/tree.py",
    f"{_CACHE}/marconi/tuning",
    "benchmark/marconi/lab",
    "benchmark/marconi/policies",
    "benchmark/marconi/traces",
)
CACHE_CODE = (
    *SHADOW_CODE,
    f"{_CACHE}/mamba_radix",
    f"{_CACHE}/mamba_radix_cache.py",
    f"{_CACHE}/marconi/attach",
)

WEIGHTS = ("0", "0.25", "0.5", "1", "2")
ONE_MEMORY = ("--engine", "shadow", "--memory", "elastic")

#: Policies of the lab by what rows call them; the first are those of every size.
COMPARED = {
    "lru": "lru",
    **{f"marconi:{weight}": f"policy-2-weight-{weight}".replace(".", "-") for weight in WEIGHTS},
    "server:3": "policy-3",
    "clairvoyant": "clairvoyant",
    "infinite": "infinite",
}
OTHERS = {
    "cap:2": "cap-2",
    "seglen": "seglen",
    "gdsf": "gdsf",
    "superseded": "superseded",
    **{
        f"marconi-state:{weight}": f"policy-2-states-weight-{weight}".replace(".", "-")
        for weight in WEIGHTS[1:]
    },
}
SHARED = {
    "lru": "lru-one-memory",
    "server:3": "policy-3-one-memory",
    "clairvoyant": "clairvoyant-one-memory",
}


def simulate(
    trace: str, gibs: str, policies: Sequence[str], *options: str, model: str = MODEL
) -> Command:
    """A sweep over one trace."""
    words = ("--trace", f"{TRACES}/{trace}.jsonl.xz", "--model", model, "--memory-gib", gibs)
    chosen = ("--policy", ",".join(policies))
    return Command(("benchmark/marconi/simulate.py", *words, *chosen, *options), trace)


def matching(
    records: Sequence[Record],
    *,
    engine: str = "sglang",
    memory: str = "static",
    ratio: float = 0.9,
    admission: str = "sglang",
    measure_from: float = 0.0,
    model: str = MODEL,
) -> dict[tuple[float, str], Record]:
    """The runs of one set-up, by GiB and policy."""
    return {
        (record["memory_gib"], record["policy"]): record
        for record in records
        if record["engine"] == engine
        and record["memory"] == memory
        and record["mamba_full_memory_ratio"] == ratio
        and record["admission"] == admission
        and record["measure_from"] == measure_from
        and str(record["model"]).rpartition("/")[2] == model
    }


def in_cells(
    records: Iterable[Record], sizes: Mapping[str, float], policies: Mapping[str, str]
) -> Iterator[tuple[dict[str, Any], Record]]:
    """The runs of one set-up and trace, size by size, with what all rows say of a run's cell.

    Args:
        sizes: GiB by capacity.
        policies: what rows call a policy of the lab.
    """
    runs = {(record["memory_gib"], record["policy"]): record for record in records}
    for capacity, gib in sizes.items():
        for policy, name in policies.items():
            if (gib, policy) in runs:
                cell = {"capacity": capacity, "memory_gib": gib, "policy": name}
                yield cell, runs[gib, policy]


def saved(record: Mapping[str, Any]) -> dict[str, float]:
    """What a run saved and hit, in percent."""
    return {
        "flops_saved": percent(record["flops_saved"]),
        "token_hit_rate": percent(record["token_hit_rate"]),
    }


def _lost(record: Mapping[str, Any]) -> dict[str, float]:
    """Shares of the input that were seen before and not hit, by the reason, in percent."""
    reasons = {name: count for name, count in record["lost_tokens"].items() if count is not None}
    if not reasons:
        return {}
    return {
        f"lost_{name}": percent(count / record["input_tokens"]) for name, count in reasons.items()
    }


def _spread(record: Mapping[str, Any]) -> dict[str, float]:
    """Whom hits went to, as far as the run counted it: shares in percent."""
    spread = record.get("spread") or {}
    shares = {
        f"spread_{name}": percent(spread[name])
        for name in ("worst_window", "never_hit", "miss_after_miss")
        if spread.get(name) is not None
    }
    tokens = spread.get("uncached_tokens", {})
    return {**shares, **{f"spread_uncached_{name}": count for name, count in tokens.items()}}


# -- every policy at three sizes


def _policies_commands() -> Iterator[Command]:
    for trace, sizes in CELLS.items():
        gibs = listed_sizes(sizes)
        yield simulate(trace, gibs, [*COMPARED, *OTHERS])
        yield simulate(trace, gibs, list(SHARED), *ONE_MEMORY)


def _policies_rows(found: Found) -> list[Row]:
    rows: list[Row] = []
    for trace, capacity, gib in cells():
        records = found.get(trace, ())
        pools = matching(records)
        shared = matching(records, engine="shadow", memory="elastic")
        commands = {command.words[3:]: command for command in _policies_commands()}
        typed = {
            one_memory: next(
                command.typed()
                for command in commands.values()
                if command.out == trace and ("--engine" in command.words) == one_memory
            )
            for one_memory in (False, True)
        }

        def row(
            name: str,
            record: Record,
            *,
            at: str = f"policies/{trace}/{capacity}",
            one_memory: bool = False,
            typed: Mapping[bool, str] = typed,
            cell: Mapping[str, Any] = {"trace": trace, "capacity": capacity, "memory_gib": gib},
            **more: Any,
        ) -> Row:
            return {
                **{"part": "policies", "id": f"{at}/{name}", **cell, "policy": name},
                **saved(record),
                **_lost(record),
                **_spread(record),
                **more,
                "measured": {"command": typed[one_memory]},
            }

        for policy, name in {**COMPARED, **OTHERS}.items():
            if (gib, policy) in pools:
                rows.append(row(name, pools[gib, policy]))
        for policy, name in SHARED.items():
            if (gib, policy) in shared:
                rows.append(row(name, shared[gib, policy], one_memory=True))
        weighed = best_weight(pools, gib)
        if weighed is not None:
            weight, record = weighed
            rows.append(row("policy-2", record, weight=float(weight)))
    return rows


def best_weight(runs: Mapping[tuple[float, str], Record], gib: float) -> tuple[str, Record] | None:
    """Policy 2 at the weight that saved most, picked afterwards; the lowest of equals.

    No weight that is tuned while it serves and then kept can save more, of those that were tried.
    """
    tried = {weight: runs.get((gib, f"marconi:{weight}")) for weight in WEIGHTS}
    known = [(weight, record) for weight, record in tried.items() if record is not None]
    if len(known) < len(WEIGHTS):
        return None
    return max(known, key=lambda pair: pair[1]["flops_saved"])


POLICIES = Part(
    "policies",
    "what every policy saves of five traces, at three sizes of memory each",
    90,
    CACHE_CODE,
    tuple(_policies_commands()),
    _policies_rows,
)


# -- five policies over memory

_CURVES = {
    "lru": "lru",
    "server:3": "policy_3",
    "clairvoyant": "clairvoyant",
}


def _by_memory_commands() -> Iterator[Command]:
    for trace, sizes in SIZES.items():
        gibs = listed_sizes(sizes)
        yield simulate(trace, gibs, ["server:3"], *ONE_MEMORY)
        policies = [policy for policy in COMPARED if policy != "infinite"]
        yield simulate(trace, gibs, policies, "--engine", "shadow")


def _by_memory_rows(found: Found) -> list[Row]:
    rows: list[Row] = []
    commands = list(_by_memory_commands())
    for trace, sizes in SIZES.items():
        records = found.get(trace, ())
        pools = matching(records, engine="shadow")
        shared = matching(records, engine="shadow", memory="elastic")
        typed = " && ".join(command.typed() for command in commands if command.out == trace)
        for gib in sizes:
            weighed = best_weight(pools, gib)
            known = {name: pools.get((gib, policy)) for policy, name in _CURVES.items()}
            known["policy_3_one_memory"] = shared.get((gib, "server:3"))
            curves = {name: saved(record) for name, record in known.items() if record is not None}
            if weighed is None or len(curves) < len(known):
                continue
            rows.append(
                {
                    "part": "by-memory",
                    "id": f"by-memory/{trace}/{size_id(gib)}",
                    "trace": trace,
                    "memory_gib": gib,
                    **curves,
                    "policy_2": {**saved(weighed[1]), "weight": float(weighed[0])},
                    "measured": {"command": typed},
                }
            )
    return rows


BY_MEMORY = Part(
    "by-memory",
    "what five policies save over the size of memory",
    60,
    SHADOW_CODE,
    tuple(_by_memory_commands()),
    _by_memory_rows,
)


# -- which states enter

_ADMITTED = {
    "tau-airline": 13.0,
    "sharegpt-a": 13.0,
    "mini-swe-agent-a": 13.0,
    "claude-code-a": 43.5,
}
_ADMITTED_POLICIES = {"lru": "lru", "marconi-state:0.5": "state_only"}


def _admission_commands() -> Iterator[Command]:
    for trace, gib in _ADMITTED.items():
        for admission in ("sglang", "judicious"):
            yield simulate(trace, f"{gib:g}", list(_ADMITTED_POLICIES), "--admission", admission)


def _admission_rows(found: Found) -> list[Row]:
    rows: list[Row] = []
    commands = list(_admission_commands())
    for trace, gib in _ADMITTED.items():
        row: Row = {"part": "admission", "id": f"admission/{trace}", "trace": trace}
        row["memory_gib"] = gib
        for admission, ending in (("sglang", ""), ("judicious", "_judicious")):
            runs = matching(found.get(trace, ()), admission=admission)
            for policy, name in _ADMITTED_POLICIES.items():
                if (gib, policy) in runs:
                    row[name + ending] = saved(runs[gib, policy])
        if len(row) == 4 + 2 * len(_ADMITTED_POLICIES):
            typed = " && ".join(command.typed() for command in commands if command.out == trace)
            rows.append({**row, "measured": {"command": typed}})
    return rows


ADMISSION = Part(
    "admission",
    "what judicious admission saves beside SGLang's",
    10,
    CACHE_CODE,
    tuple(_admission_commands()),
    _admission_rows,
)


# -- other models

_MODELS = {"nemotron-h-8b": "Nemotron-H-8B-Base-8K", "marconi-7b": "marconi-7b"}
_MODEL_SIZES = {
    "tau-airline": 4.0,
    "claude-code-a": 19.4,
    "mini-swe-agent-a": 9.73,
    "sharegpt-a": 17.4,
}


def _models_commands() -> Iterator[Command]:
    for model in _MODELS.values():
        for trace, gib in _MODEL_SIZES.items():
            shadow = ("--engine", "shadow")
            policies = ["lru", "value", "value:state"]
            yield simulate(trace, f"{gib:g}", policies, *shadow, model=model)
            yield simulate(trace, f"{gib:g}", policies[:2], *ONE_MEMORY, model=model)


def _models_rows(found: Found) -> list[Row]:
    rows: list[Row] = []
    commands = list(_models_commands())
    for short, model in _MODELS.items():
        for trace, gib in _MODEL_SIZES.items():
            records = [
                {**record, "model": model}
                for record in found.get(trace, ())
                if model.lower() in str(record["model"]).lower()
            ]
            pools = matching(records, engine="shadow", model=model)
            shared = matching(records, engine="shadow", memory="elastic", model=model)
            wanted = {
                "lru": pools.get((gib, "lru")),
                "policy_3": pools.get((gib, "value")),
                "policy_3_states": pools.get((gib, "value:state")),
                "lru_one_memory": shared.get((gib, "lru")),
                "policy_3_one_memory": shared.get((gib, "value")),
            }
            known = {name: record for name, record in wanted.items() if record is not None}
            if len(known) < len(wanted):
                continue
            typed = " && ".join(
                command.typed()
                for command in commands
                if command.out == trace and model in command.words
            )
            rows.append(
                {
                    **{"part": "models", "id": f"models/{short}/{trace}"},
                    **{"model": model, "trace": trace, "memory_gib": gib},
                    **{name: percent(record["flops_saved"]) for name, record in known.items()},
                    "measured": {"command": typed},
                }
            )
    return rows


MODELS = Part(
    "models",
    "what policy 3 saves under other models' costs",
    15,
    SHADOW_CODE,
    tuple(_models_commands()),
    _models_rows,
)


# -- SGLang's unified pools

_UNIFIED = {"lru": "lru", "marconi:0.5": "policy-2", "server:3": "policy-3"}
_UNIFIED_COMMAND = simulate("tau-airline", "5.19", list(_UNIFIED), "--memory", "elastic")


def _unified_rows(found: Found) -> list[Row]:
    runs = matching(found.get("tau-airline", ()), memory="elastic")
    return [
        {
            **{"part": "unified", "id": f"unified/{name}", "trace": "tau-airline"},
            **{"memory_gib": 5.19, "policy": name},
            **saved(runs[5.19, policy]),
            "measured": {"command": _UNIFIED_COMMAND.typed()},
        }
        for policy, name in _UNIFIED.items()
        if (5.19, policy) in runs
    ]


UNIFIED = Part(
    "unified",
    "what policies save through SGLang's own unified pools",
    2,
    (*CACHE_CODE, f"{_CACHE}/mamba_radix/shared_memory.py"),
    (_UNIFIED_COMMAND,),
    _unified_rows,
)


# -- SGLang 0.5.4

_FORK_POLICIES = {
    "lru": "lru",
    "marconi:0.5": "policy_2_weight_0_5",
    "marconi:1": "policy_2_weight_1",
    "marconi-state:0.5": "policy_2_states_weight_0_5",
}


def _fork_commands() -> Iterator[Command]:
    for trace, sizes in CELLS.items():
        yield simulate(trace, listed_sizes(sizes), list(_FORK_POLICIES), "--base", "0.5.4")


def _fork_rows(found: Found) -> list[Row]:
    rows: list[Row] = []
    commands = {command.out: command for command in _fork_commands()}
    for trace, capacity, gib in cells():
        runs = matching(found.get(trace, ()))
        known = {
            name: percent(runs[gib, policy]["flops_saved"])
            for policy, name in _FORK_POLICIES.items()
            if (gib, policy) in runs
        }
        if len(known) == len(_FORK_POLICIES):
            rows.append(
                {
                    **{"part": "fork", "id": f"fork/{trace}/{capacity}", "trace": trace},
                    **{"capacity": capacity, "memory_gib": gib},
                    **known,
                    "measured": {"command": commands[trace].typed()},
                }
            )
    return rows


FORK = Part(
    "fork",
    "what the paper's policy saves on the cache of SGLang 0.5.4",
    45,
    (*SHADOW_CODE, "patches/v0.5.4"),
    tuple(_fork_commands()),
    _fork_rows,
    sglang="0.5.4",
)
