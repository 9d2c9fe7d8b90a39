"""Every Marconi knob, its default and its check, in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

#: Lowest-utility eviction is what the project is for; 1 exists to compare against.
POLICY_NAMES: dict[int, str] = {1: "lru", 2: "marconi"}

DEFAULT_EFF_WEIGHT = 0.5
SAVINGS_CHOICES = ("surviving", "parent")
POOLS_CHOICES = ("both", "state")
ADMISSION_CHOICES = ("sglang", "judicious")


class MarconiConfigError(ValueError):
    """A Marconi option is unusable; the message names the flag, the value and what is allowed."""


@dataclass(frozen=True)
class MarconiFlag:
    """One option as an operator sees it.

    Attributes:
        field: attribute of :class:`MarconiConfig`, also the ``sglang.Engine`` keyword and, with
            dashes for underscores, the command line flag and the ``--config`` key.
        help: one sentence for ``--help``.
        choices: allowed values, or ``None`` where any finite number >= 0 is.
        default: what is in force when the option is not given and a policy is.
        policies: the policies that use it.
        sequences: it takes sequences of token ids.
    """

    field: str
    help: str
    choices: tuple[int, ...] | tuple[str, ...] | None
    default: int | float | str | None
    policies: tuple[int, ...] = (2,)
    sequences: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")


FLAGS: tuple[MarconiFlag, ...] = (
    MarconiFlag(
        "marconi_evict_policy",
        "How the prefix cache of a hybrid model chooses what to evict: 1 is stock LRU, 2 is "
        "Marconi (recency + weight * FLOP efficiency). Unset: SGLang is exactly stock.",
        tuple(POLICY_NAMES),
        None,
    ),
    MarconiFlag(
        "marconi_eff_weight",
        "Weight (alpha) of FLOP efficiency against recency under policy 2; 0 is recency alone.",
        None,
        DEFAULT_EFF_WEIGHT,
    ),
    MarconiFlag(
        "marconi_savings",
        "What a cached state saves under policy 2: 'surviving' counts the FLOPs from the deepest "
        "state that would survive above it, 'parent' is the published parent-relative form.",
        SAVINGS_CHOICES,
        "surviving",
    ),
    MarconiFlag(
        "marconi_evict_pools",
        "Which pools policy 2 orders: 'both', or only the 'state' pool with stock LRU for KV.",
        POOLS_CHOICES,
        "both",
    ),
    MarconiFlag(
        "marconi_admission",
        "Which states of a request stay cached: 'sglang' keeps every prefill chunk's, 'judicious' "
        "those at branch points and at the last decoded token.",
        ADMISSION_CHOICES,
        "sglang",
        policies=(1, 2),
    ),
    MarconiFlag(
        "marconi_boundary_tokens",
        "Under judicious admission, leave a state also where one of these sequences of token ids "
        "first begins in a prompt, such as the marker of the first user turn: ids are separated "
        "by commas, sequences by semicolons.",
        None,
        None,
        policies=(1, 2),
        sequences=True,
    ),
)


@dataclass(frozen=True)
class MarconiConfig:
    """A checked, complete set of Marconi options.

    Attributes:
        marconi_evict_policy: 1 or 2 (see :data:`POLICY_NAMES`).
        marconi_eff_weight: alpha, dimensionless, finite and >= 0.
        marconi_savings: reference point of a state's savings, see :data:`FLAGS`.
        marconi_evict_pools: pools whose victims the policy orders.
        marconi_admission: which states stay in the tree, see :data:`FLAGS`.
        marconi_boundary_tokens: sequences of token ids before which judicious admission leaves a
            state.
    """

    marconi_evict_policy: int
    marconi_eff_weight: float = DEFAULT_EFF_WEIGHT
    marconi_savings: str = "surviving"
    marconi_evict_pools: str = "both"
    marconi_admission: str = "sglang"
    marconi_boundary_tokens: tuple[tuple[int, ...], ...] = ()

    @property
    def policy_name(self) -> str:
        return POLICY_NAMES[self.marconi_evict_policy]

    @property
    def leaves_kv_to_sglang(self) -> bool:
        """KV leaves keep SGLang's own order."""
        return self.marconi_evict_policy == 1 or self.marconi_evict_pools == "state"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> MarconiConfig | None:
        """Check raw options and complete them with defaults.

        Args:
            options: values by field name; a missing key or ``None`` means "not given".

        Returns:
            ``None`` if no option was given at all, so that SGLang stays stock.

        Raises:
            MarconiConfigError: an unknown value, a weight that is no finite number >= 0, or
                options that contradict each other.
        """
        known = {flag.field for flag in FLAGS}
        unknown = sorted(name for name in options if name not in known)
        if unknown:
            raise MarconiConfigError(
                f"unknown Marconi option {unknown[0]!r}; known are {', '.join(sorted(known))}"
            )
        given = {name: value for name, value in options.items() if value is not None}
        if not given:
            return None
        checked = {
            flag.field: check_value(flag, given[flag.field])
            for flag in FLAGS
            if flag.field in given
        }
        _check_together(checked)
        return cls(**checked)


def check_value(flag: MarconiFlag, value: Any) -> Any:
    """One option's value in its own type.

    Raises:
        MarconiConfigError: the value is not allowed.
    """
    if flag.sequences:
        return _token_sequences(flag, value)
    if flag.choices is not None:
        for choice in flag.choices:
            if not isinstance(value, bool) and (value == choice or str(value) == str(choice)):
                return choice
        allowed = ", ".join(str(choice) for choice in flag.choices)
        raise MarconiConfigError(f"{flag.flag} is {value!r}; allowed are {allowed}")
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number) or number < 0:
        raise MarconiConfigError(f"{flag.flag} is {value!r}; allowed is a finite number >= 0")
    return number


def _token_sequences(flag: MarconiFlag, value: Any) -> tuple[tuple[int, ...], ...]:
    """Sequences of token ids, from text or from lists of numbers."""
    try:
        texts = [part.split(",") for part in value.split(";")] if isinstance(value, str) else value
        sequences = tuple(tuple(int(token) for token in text) for text in texts)
    except (TypeError, ValueError):
        sequences = ()
    if not sequences or any(not ids or min(ids) < 0 for ids in sequences):
        raise MarconiConfigError(
            f"{flag.flag} is {value!r}; allowed are token ids >= 0 separated by commas, their "
            f"sequences by semicolons"
        )
    return sequences


def _check_together(given: Mapping[str, Any]) -> None:
    policy = given.get("marconi_evict_policy")
    others = [flag for flag in FLAGS[1:] if flag.field in given]
    for flag in others:
        if policy in flag.policies:
            continue
        chosen = "not set" if policy is None else f"{policy} ({POLICY_NAMES[policy]})"
        raise MarconiConfigError(
            f"{flag.flag} is {given[flag.field]!r} but --marconi-evict-policy is {chosen}; "
            f"allowed with it is --marconi-evict-policy {' or '.join(map(str, flag.policies))}"
        )
    if "marconi_boundary_tokens" in given and given.get("marconi_admission") != "judicious":
        raise MarconiConfigError(
            f"--marconi-boundary-tokens is {given['marconi_boundary_tokens']!r} but "
            f"--marconi-admission is {given.get('marconi_admission', 'not set')}; allowed with it "
            f"is --marconi-admission judicious"
        )


assert {flag.field for flag in FLAGS} == {field.name for field in fields(MarconiConfig)}
