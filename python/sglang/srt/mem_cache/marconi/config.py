"""Every Marconi knob, its default and its check, in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sglang.srt.mem_cache.marconi.eviction.registry import POLICIES

#: As a weight: left to the tuner. As a policy: :data:`AUTO_POLICY`.
AUTO = "auto"
#: What a tuner of policies ended with in every cell of the lab in which it chose.
AUTO_POLICY = 3

#: What a weight that nobody gave or tunes is.
DEFAULT_EFF_WEIGHT = 0.5
DEFAULT_BOOTSTRAP_MULTIPLIER = 5.0
DEFAULT_TUNING_INTERVAL = 500
DEFAULT_TUNER_MEMORY_MIB = 1024
DEFAULT_TUNER_SECONDS = 600.0
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
        about: what it is, for ``--help``.
        values: allowed values, or ``None`` where a number is.
        default: what is in force when the option is not given and a policy is.
        at_least: smallest number allowed.
        whole: only whole numbers are.
        words: what is allowed beside numbers.
        metavar: what a number stands for, in ``--help``.
        names_policy: its value is a registered policy's number; ``about`` holds ``{policies}``.
        of_every_policy: every policy uses it; otherwise those whose entry lists it.
        sequences: it takes sequences of token ids.
        text: it takes any text.
        about_auto: what ``auto`` means, where there is a tuner.
        of_tuner: it only means something where there is a tuner.
        by_process: the tuner's process does it, whether or not something is tuned.
    """

    field: str
    about: str
    values: tuple[int | str | bool, ...] | None
    default: int | float | str | None
    at_least: float = 0
    whole: bool = False
    words: tuple[str, ...] = ()
    metavar: str = "WEIGHT"
    names_policy: bool = False
    of_every_policy: bool = False
    sequences: bool = False
    text: bool = False
    about_auto: str = ""
    of_tuner: bool = False
    by_process: bool = False

    @property
    def choices(self) -> tuple[int | str | bool, ...] | None:
        """Allowed values, or ``None`` where a number is."""
        return (*POLICIES, *self.words) if self.names_policy else self.values

    @property
    def policies(self) -> tuple[int, ...]:
        """The policies that use it."""
        # What is tuned is the weight.
        field = "marconi_eff_weight" if self.of_tuner else self.field
        return tuple(
            number
            for number, entry in POLICIES.items()
            if self.of_every_policy or field in entry.options
        )

    @property
    def help(self) -> str:
        """A sentence or two for ``--help``."""
        about = self.about
        if self.names_policy:
            known = (f"{number} is {entry.about}" for number, entry in POLICIES.items())
            about = about.format(policies=", ".join(known))
        if self.of_tuner:
            about += " Policy 2 only."
        return f"{about} {self.about_auto}".strip()

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """It takes no value on the command line."""
        return self.choices == (True, False)

    @property
    def allowed(self) -> str:
        """What is allowed, for a message."""
        if self.choices is not None:
            verb = "is " if len(self.choices) == 1 else "are "
            return verb + ", ".join(str(choice) for choice in self.choices)
        kind = "whole" if self.whole else "finite"
        return " or ".join((f"is a {kind} number >= {self.at_least:g}", *self.words))


FLAGS: tuple[MarconiFlag, ...] = (
    MarconiFlag(
        "marconi_evict_policy",
        "How the prefix cache of a hybrid model chooses what to evict: {policies}, "
        f"{AUTO} is {AUTO_POLICY}. Unset: SGLang is exactly stock.",
        None,
        None,
        words=(AUTO,),
        names_policy=True,
    ),
    MarconiFlag(
        "marconi_eff_weight",
        "Weight (alpha) of FLOP efficiency against recency under policy 2; 0 is recency alone.",
        None,
        AUTO,
        words=(AUTO,),
        about_auto="auto is whichever would have saved most FLOPs on the requests just seen.",
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
        "Which pools policies 2 and 3 order: 'both', or the 'state' pool with stock LRU for KV.",
        POOLS_CHOICES,
        "both",
    ),
    MarconiFlag(
        "marconi_bootstrap_multiplier",
        "The first tuning looks back at this many times the requests that came before the first "
        "eviction.",
        None,
        DEFAULT_BOOTSTRAP_MULTIPLIER,
        at_least=1,
        metavar="FACTOR",
        of_tuner=True,
    ),
    MarconiFlag(
        "marconi_tuning_interval",
        "Tune again every so many requests; 0 tunes once.",
        None,
        DEFAULT_TUNING_INTERVAL,
        whole=True,
        metavar="REQUESTS",
        of_tuner=True,
    ),
    MarconiFlag(
        "disable_marconi_autotune",
        f"Do not tune: the weight is {DEFAULT_EFF_WEIGHT:g} unless given.",
        (True, False),
        None,
        of_tuner=True,
    ),
    MarconiFlag(
        "marconi_tuner_memory_mib",
        "Most memory that the tuner's process may take, in MiB.",
        None,
        DEFAULT_TUNER_MEMORY_MIB,
        at_least=128,
        whole=True,
        metavar="MIB",
        of_tuner=True,
    ),
    MarconiFlag(
        "marconi_tuner_seconds",
        "Longest wait for the tuner's answer to a window, before it is given up and started again.",
        None,
        DEFAULT_TUNER_SECONDS,
        at_least=1,
        metavar="SECONDS",
        of_tuner=True,
    ),
    MarconiFlag(
        "marconi_admission",
        "Which states of a request stay cached: 'sglang' keeps every prefill chunk's, 'judicious' "
        "those at branch points and at the last decoded token.",
        ADMISSION_CHOICES,
        "sglang",
        of_every_policy=True,
    ),
    MarconiFlag(
        "marconi_boundary_tokens",
        "Under judicious admission, leave a state also where one of these sequences of token ids "
        "first begins in a prompt, such as the marker of the first user turn: ids are separated "
        "by commas, sequences by semicolons.",
        None,
        None,
        metavar="IDS",
        of_every_policy=True,
        sequences=True,
    ),
    MarconiFlag(
        "marconi_record",
        "Append the requests to this file, as lengths and hashes of blocks without any token, for "
        "the trace lab and marconi.advise.",
        None,
        None,
        metavar="FILE",
        of_every_policy=True,
        text=True,
        by_process=True,
    ),
)


@dataclass(frozen=True)
class MarconiConfig:
    """A checked, complete set of Marconi options.

    Attributes:
        marconi_evict_policy: a number of :data:`POLICIES`.
        marconi_eff_weight: alpha, dimensionless, finite and >= 0, or "auto".
        marconi_savings: reference point of a state's savings, see :data:`FLAGS`.
        marconi_evict_pools: pools whose victims the policy orders.
        marconi_bootstrap_multiplier: length of the first window, in multiples of the requests
            before the first eviction.
        marconi_tuning_interval: length of later windows, in requests; 0 for none.
        disable_marconi_autotune: nothing is tuned.
        marconi_tuner_memory_mib: bound of the tuner's memory, in MiB.
        marconi_tuner_seconds: longest wait for an answer, in seconds.
        marconi_admission: which states stay in the tree, see :data:`FLAGS`.
        marconi_boundary_tokens: sequences of token ids before which judicious admission leaves a
            state.
        marconi_record: file that requests are recorded in, as block hashes.
    """

    marconi_evict_policy: int
    marconi_eff_weight: float | str = AUTO
    marconi_savings: str = "surviving"
    marconi_evict_pools: str = "both"
    marconi_bootstrap_multiplier: float = DEFAULT_BOOTSTRAP_MULTIPLIER
    marconi_tuning_interval: int = DEFAULT_TUNING_INTERVAL
    disable_marconi_autotune: bool = False
    marconi_tuner_memory_mib: int = DEFAULT_TUNER_MEMORY_MIB
    marconi_tuner_seconds: float = DEFAULT_TUNER_SECONDS
    marconi_admission: str = "sglang"
    marconi_boundary_tokens: tuple[tuple[int, ...], ...] = ()
    marconi_record: str | None = None

    @property
    def policy_name(self) -> str:
        return POLICIES[self.marconi_evict_policy].name

    @property
    def leaves_kv_to_sglang(self) -> bool:
        """KV leaves keep SGLang's own order."""
        entry = POLICIES[self.marconi_evict_policy]
        return not entry.orders_kv or self.marconi_evict_pools == "state"

    @property
    def tunes(self) -> bool:
        """The weight is left to the tuner."""
        return self.marconi_eff_weight == AUTO

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any], flags: Sequence[MarconiFlag] = FLAGS
    ) -> MarconiConfig | None:
        """Check raw options and complete them with defaults.

        Args:
            options: values by field name; a missing key or ``None`` means "not given".
            flags: the options that there are on this base.

        Returns:
            ``None`` if no option was given at all, so that SGLang stays stock.

        Raises:
            MarconiConfigError: a value that is not allowed, or options that contradict each other.
        """
        known = {flag.field for flag in flags}
        unknown = sorted(name for name in options if name not in known)
        if unknown:
            raise MarconiConfigError(
                f"unknown Marconi option {unknown[0]!r}; known are {', '.join(sorted(known))}"
            )
        given = {
            name: value
            for name, value in options.items()
            if value is not None and not (name == "disable_marconi_autotune" and value is False)
        }
        if not given:
            return None
        checked = {
            flag.field: check_value(flag, given[flag.field])
            for flag in flags
            if flag.field in given
        }
        _check_together(checked, flags)
        policy = POLICIES[checked["marconi_evict_policy"]]
        if "marconi_eff_weight" not in policy.options:
            checked["marconi_eff_weight"] = DEFAULT_EFF_WEIGHT
        elif checked.get("disable_marconi_autotune"):
            checked.setdefault("marconi_eff_weight", DEFAULT_EFF_WEIGHT)
        defaults = {flag.field: flag.default for flag in flags if flag.default is not None}
        return cls(**{**defaults, **checked})


def check_value(flag: MarconiFlag, value: Any) -> Any:
    """One option's value in its own type.

    Raises:
        MarconiConfigError: the value is not allowed.
    """
    if flag.sequences:
        return _token_sequences(flag, value)
    if flag.text:
        if not (isinstance(value, str) and value):
            raise MarconiConfigError(f"{flag.flag} is {value!r}; allowed is the name of a file")
        return value
    if flag.choices is not None:
        for choice in flag.choices:
            same_kind = isinstance(value, bool) == isinstance(choice, bool)
            if (same_kind and value == choice) or str(value).lower() == str(choice).lower():
                return AUTO_POLICY if choice == AUTO else choice
        raise MarconiConfigError(f"{flag.flag} is {value!r}; allowed {flag.allowed}")
    if value in flag.words:
        return value
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    fraction = flag.whole and number != math.floor(number) if math.isfinite(number) else True
    if fraction or number < flag.at_least:
        raise MarconiConfigError(f"{flag.flag} is {value!r}; allowed {flag.allowed}")
    return int(number) if flag.whole else number


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


def _check_together(given: Mapping[str, Any], flags: Sequence[MarconiFlag]) -> None:
    policy = given.get("marconi_evict_policy")
    others = [flag for flag in flags[1:] if flag.field in given]
    for flag in others:
        if policy in flag.policies:
            continue
        chosen = "not set" if policy is None else f"{policy} ({POLICIES[policy].name})"
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
    weight = given.get("marconi_eff_weight", AUTO)
    disabled = given.get("disable_marconi_autotune", False)
    if disabled and given.get("marconi_eff_weight") == AUTO:
        raise MarconiConfigError(
            "--marconi-eff-weight is auto but --disable-marconi-autotune is set; allowed is one "
            "of the two"
        )
    unused = [flag for flag in others if flag.of_tuner and not flag.is_switch]
    if unused and (disabled or weight != AUTO):
        why = "--disable-marconi-autotune is set"
        if not disabled:
            why = f"--marconi-eff-weight is {weight:g}, so that nothing is tuned"
        raise MarconiConfigError(
            f"{unused[0].flag} is {given[unused[0].field]!r} but {why}; allowed with it is "
            f"--marconi-eff-weight auto"
        )


assert {flag.field for flag in FLAGS} == {field.name for field in fields(MarconiConfig)}
