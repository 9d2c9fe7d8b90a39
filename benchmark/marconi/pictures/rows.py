"""Result rows of the simulator, checked line by line; an unusable line is reported and skipped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

from lab.spec import DEFAULT_BASE
from sglang.srt.marconi_utils import cost_by_name

GIB = 2**30
LOSSES = ("state_evicted", "kv_evicted", "never_admitted")
ENGINES = ("sglang", "shadow", "paper")
MEMORIES = ("static", "elastic")
CAPACITIES = ("starved", "middle", "ample")
DEFAULT_ALPHA = 0.5

Labels = tuple[tuple[str, str | float], ...]


class RowError(ValueError):
    """A line that is no result row; the message names file, line and what is wrong."""


@dataclass(frozen=True)
class LengthBin:
    """What the requests of one range of prompt lengths found; tokens."""

    max_input_tokens: float
    input_tokens: int
    hit_tokens: int


@dataclass(frozen=True)
class Row:
    """One run. Rates and ``flops_saved`` are fractions; ``lost`` counts tokens, None if unknown.

    ``memory_gib`` is both pools together, or the one budget of the paper's engine. ``ttft`` maps
    mean, p50, p95 and p99 to milliseconds, and is empty without a concurrency model.
    """

    trace: str
    policy: str
    token_hit_rate: float
    flops_saved: float
    engine: str = "sglang"
    base: str = ""
    model: str = ""
    memory_gib: float | None = None
    memory: str = "static"
    ratio: float | None = None
    capacity: str | None = None
    admission: str = ""
    paper_mode: str = ""
    concurrency: int | None = None
    measure_from: float = 0.0
    requests: int = 0
    input_tokens: int = 0
    lost: Mapping[str, float | None] = field(default_factory=dict)
    by_length: tuple[LengthBin, ...] = ()
    ttft: Mapping[str, float] = field(default_factory=dict)
    labels: Labels = ()

    @property
    def family(self) -> str:
        """The policy without its weight: the same policy by another name has the same family."""
        name, _, rest = self.policy.partition(":")
        if name == "server":
            return "marconi" if rest.partition(":")[0] == "2" else self.policy
        return name

    @property
    def alpha(self) -> float | None:
        """The weight of FLOP efficiency, None where the policy has none or tunes it."""
        if not self.family.startswith("marconi") or self.is_tuned:
            return None
        number = re.search(r":([0-9.]+)$", self.policy.removeprefix("server:2"))
        return float(number[1]) if number else DEFAULT_ALPHA

    @property
    def is_tuned(self) -> bool:
        """Whether this is the paper's Marconi, which tunes its weight once."""
        return self.engine == "paper" and self.policy == "marconi"

    @property
    def setting(self) -> tuple[Any, ...]:
        """What must be equal beside trace and memory for two runs to be comparable.

        Memory for both has no split. The paper's engine has one byte budget, and each of its
        policies an admission of its own.
        """
        paper = self.engine == "paper"
        of_pools: tuple[Any, ...] = (None, None, self.paper_mode)
        if not paper:
            split = None if self.memory == "elastic" else self.ratio
            of_pools = (self.memory, split, self.admission)
        part = (self.measure_from, self.concurrency, self.labels)
        return (self.engine, self.base, self.model, *of_pools, *part)

    @property
    def workload(self) -> str:
        """The shape of a generated trace, by which its files belong together, or the trace."""
        return str(self.label("shape") or self.trace)

    def label(self, name: str) -> str | float | None:
        """A value given on the simulator's command line, None if it was not."""
        return dict(self.labels).get(name)


def read_rows(paths: Iterable[Path]) -> tuple[list[Row], list[RowError]]:
    """All rows, and what is wrong with the other lines; a run told twice counts as told last."""
    rows: dict[Any, Row] = {}
    problems: list[RowError] = []
    for path in paths:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = parse_row(json.loads(line))
                except (ValueError, TypeError, KeyError) as error:
                    what = f"{error!s} is missing" if isinstance(error, KeyError) else str(error)
                    problems.append(RowError(f"{path}, line {number}: {what}"))
                    continue
                same_run = (row.trace, row.policy, row.memory_gib, row.capacity, row.setting)
                rows[same_run] = row
    return list(rows.values()), problems


def parse_row(record: Any) -> Row:
    """A row from its JSON object.

    Raises:
        ValueError, TypeError, KeyError: a field is missing, of a wrong type or out of range.
    """
    if not isinstance(record, dict):
        raise ValueError(f"a row is a JSON object, this is {type(record).__name__}")
    engine = _one_of(record.get("engine") or "sglang", "engine", ENGINES)
    lost, ttft = _object(record, "lost_tokens"), _object(record, "ttft_ms_modelled")
    return Row(
        trace=str(record["trace"]),
        policy=str(record["policy"]),
        token_hit_rate=_fraction(record, "token_hit_rate"),
        flops_saved=_fraction(record, "flops_saved"),
        engine=engine,
        base=str(record.get("base") or DEFAULT_BASE),
        model=str(record.get("model") or ""),
        memory_gib=_memory_gib(record),
        memory=_one_of(record.get("memory") or "static", "memory", MEMORIES),
        ratio=_number(record, "mamba_full_memory_ratio"),
        capacity=_one_of(record.get("capacity"), "capacity", (*CAPACITIES, None)),
        admission=str(record.get("admission") or ""),
        paper_mode=str(record.get("paper_mode") or ""),
        concurrency=None if record.get("concurrency") is None else int(record["concurrency"]),
        measure_from=_number(record, "measure_from") or 0.0,
        requests=int(_number(record, "requests") or 0),
        input_tokens=int(_number(record, "input_tokens") or 0),
        lost={reason: _number(lost, reason) for reason in LOSSES},
        by_length=tuple(_length_bin(one) for one in record.get("by_length") or ()),
        ttft={
            name: value
            for name in ("mean", "p50", "p95", "p99")
            if (value := _number(ttft, name)) is not None
        },
        labels=tuple(sorted(_object(record, "labels").items())),
    )


def _length_bin(record: Mapping[str, Any]) -> LengthBin:
    return LengthBin(
        max_input_tokens=_number(record, "max_input_tokens") or float("inf"),
        input_tokens=int(record["input_tokens"]),
        hit_tokens=int(record["hit_tokens"]),
    )


def _memory_gib(record: Mapping[str, Any]) -> float | None:
    given = _number(record, "memory_gib")
    if given is not None:
        return given
    budget = _number(record, "capacity_bytes")
    if budget is not None:
        return budget / GIB
    tokens, slots = _number(record, "kv_tokens"), _number(record, "state_slots")
    sizes = _bytes_by_name(str(record.get("model") or ""))
    if tokens is None or slots is None or sizes is None:
        return None
    return float(f"{(tokens * sizes[0] + slots * sizes[1]) / GIB:.3g}")


@cache
def _bytes_by_name(model: str) -> tuple[float, float] | None:
    try:
        cost = cost_by_name(model)
    except KeyError:
        return None
    return cost.kv_bytes_per_token, cost.state_bytes


def _number(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name!r} is {value!r}, not a number")
    return float(value)


def _object(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = record.get(name) or {}
    if not isinstance(value, dict):
        raise TypeError(f"{name!r} is {value!r}, not an object")
    return value


def _fraction(record: Mapping[str, Any], name: str) -> float:
    value = _number(record, name)
    if value is None:
        raise KeyError(name)
    if not 0 <= value <= 1:
        raise ValueError(f"{name!r} is {value!r}; allowed are 0 to 1")
    return value


def _one_of(value: Any, name: str, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name!r} is {value!r}; allowed are {', '.join(map(str, allowed))}")
    return value
