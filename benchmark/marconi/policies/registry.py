"""The interface between a policy's name and the cache that runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.losses import chain_hashes
from sglang.srt.mem_cache.marconi.eviction.policy import EvictionPolicy
from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from traces import Request


class PolicyError(ValueError):
    """A value of ``--policy`` is unusable; the message says what is allowed."""


@dataclass(frozen=True)
class PolicyContext:
    """What a policy may know of the run that it is made for.

    Lengths and pools are in the units of the cache that runs: a KV slot is one block of the trace.

    Attributes:
        cost: FLOPs and bytes of the model, where the unit of length is a block.
        block_tokens: tokens a block.
        kv_tokens: KV slots of the cache, in blocks.
        state_slots: slots of the state pool.
        requests: reads the trace again from its start; offline policies do.
        admission: which states enter the cache.
        running: requests that may run at once.
        elastic: KV and states share one budget of bytes.
        chained: the cache names a block by the hash of all up to it, as
            :func:`lab.losses.chain_hashes` makes it, modulo 2^64.
        seconds: ``cost`` with FLOPs by the time that the run's model says they take; ``None``: they
            take the same.
    """

    cost: CostModel
    block_tokens: int
    kv_tokens: int
    state_slots: int
    requests: Callable[[], Iterator[Request]]
    admission: str = "sglang"
    running: int = 1
    elastic: bool = False
    chained: bool = False
    seconds: CostModel | None = None

    def named(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The blocks of a prompt as the cache names them."""
        if not self.chained:
            return tuple(ids)
        return tuple(hash & (2**64 - 1) for hash in chain_hashes(ids))


@dataclass(frozen=True)
class CacheArguments:
    """What to make a ``CpuCache`` and its ``server_context`` with.

    Attributes:
        policy: as of ``CpuCache``: ``None`` for stock, Marconi's number, or a policy of one's own.
        core: tree core of a stock cache, "python" or "rust".
        options: further Marconi options, by field name.
        kv_order: as ``--radix-eviction-policy``.
        kv_order_config: as ``--radix-eviction-policy-config``; lengths in blocks.
        max_states_per_path: as ``--mamba-max-states-per-path``, for ``server_context``.
        kv_tokens: KV slots instead of the context's, in blocks.
        state_slots: state slots instead of the context's.
    """

    policy: int | EvictionPolicy | None = None
    core: str = "python"
    options: dict[str, Any] = field(default_factory=dict)
    kv_order: str = "lru"
    kv_order_config: dict[str, Any] | None = None
    max_states_per_path: int = -1
    kv_tokens: int | None = None
    state_slots: int | None = None

    def for_cache(self, context: PolicyContext) -> dict[str, Any]:
        """The keyword arguments of ``CpuCache``.

        Stock's caches have stock's admission only: under another one the product's policy 1, whose
        victims are stock's, stands in for them.
        """
        policy, options = self.policy, self.options
        if context.admission != "sglang":
            policy = 1 if policy is None else policy
            options = {**options, "marconi_admission": context.admission}
        return {
            "policy": policy,
            "core": self.core,
            "options": options,
            "kv_order": self.kv_order,
            "kv_order_config": self.kv_order_config,
            "kv_tokens": self.kv_tokens or context.kv_tokens,
            "state_slots": self.state_slots or context.state_slots,
            "cost": context.cost,
            "elastic": context.elastic,
        }


Recipe = Callable[[PolicyContext], CacheArguments]


@dataclass
class PolicyArguments:
    """The parts of a ``--policy`` value behind its name, taken one by one from the left."""

    spec: str
    form: str
    parts: list[str]

    def integer(self, name: str, *, at_least: int, default: int | None = None) -> int:
        """The next part as a whole number; without a default it must be there."""
        text = self._next()
        if text is None and default is not None:
            return default
        try:
            value = int(text or "")
        except ValueError:
            value = at_least - 1
        if value < at_least:
            raise self.error(f"{name} a whole number >= {at_least}")
        return value

    def number(self, name: str) -> float:
        """The next part as a finite number >= 0."""
        try:
            value = float(self._next() or "")
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise self.error(f"{name} a finite number >= 0")
        return value

    def text(self) -> str | None:
        """The next part as it is, ``None`` if there is none."""
        return self._next()

    def end(self) -> None:
        """Refuse parts that nobody took."""
        if self.parts:
            raise self.error("nothing after it")

    def error(self, allowed: str) -> PolicyError:
        return PolicyError(f"--policy is {self.spec!r}; allowed is {self.form} with {allowed}")

    def _next(self) -> str | None:
        return self.parts.pop(0) if self.parts else None


@dataclass(frozen=True)
class _Family:
    form: str
    help: str
    parse: Callable[[PolicyArguments], Recipe]


_FAMILIES: dict[str, _Family] = {}


def policy_family(
    form: str, help: str
) -> Callable[[Callable[[PolicyArguments], Recipe]], Callable[[PolicyArguments], Recipe]]:
    """Enter a policy, or a family of them, under the name that ``form`` begins with.

    The function decorated takes the parts behind the name and returns how to make the cache; it
    is called before any run starts, the recipe at the start of a run.

    Args:
        form: the spec as a user writes it, arguments in capitals, as in ``cap:K``.
        help: one line.
    """

    def enter(parse: Callable[[PolicyArguments], Recipe]) -> Callable[[PolicyArguments], Recipe]:
        name = form.partition(":")[0].partition("[")[0]
        assert name not in _FAMILIES, f"two policies named {name}"
        _FAMILIES[name] = _Family(form, help, parse)
        return parse

    return enter


def check_policy(spec: str) -> Recipe:
    """Read a value of ``--policy`` without starting anything.

    Raises:
        PolicyError: no policy is written so.
    """
    name, *parts = spec.split(":")
    family = _FAMILIES.get(name)
    if family is None:
        raise PolicyError(f"--policy is {spec!r}; allowed are {', '.join(policy_forms())}")
    arguments = PolicyArguments(spec, family.form, parts)
    recipe = family.parse(arguments)
    arguments.end()
    return recipe


def cache_arguments(spec: str, context: PolicyContext) -> CacheArguments:
    """What to make the cache with under policy ``spec``; an offline policy reads the trace now.

    Raises:
        PolicyError: no policy is written so.
    """
    return check_policy(spec)(context)


def policy_names() -> list[str]:
    """Names, without arguments, sorted."""
    return sorted(_FAMILIES)


def policy_forms() -> list[str]:
    """The policies as a user writes them, sorted by name."""
    return [_FAMILIES[name].form for name in policy_names()]


def policy_help() -> str:
    """A line a policy, for ``--help``."""
    width = max(map(len, policy_forms()))
    families = [_FAMILIES[name] for name in policy_names()]
    return "\n".join(f"{family.form:<{width}}  {family.help}" for family in families)
