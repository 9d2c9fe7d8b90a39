"""Few launches in which settings meet two by two, each value with each, where SGLang allows it."""

from __future__ import annotations

from collections.abc import Mapping

from allpairspy import AllPairs  # type: ignore[import-untyped]

from launches.listed import DP_ATTENTION, HOST, NEXTN, Launch

#: Numbers of these launches begin after it.
FIRST = 100
#: Settings, their values and the flags of each.
#: In other orders the library leaves pairs out, where few combinations are allowed.
SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "admission": {name: ("--marconi-admission", name) for name in ("sglang", "judicious")},
    "schedule": {name: ("--schedule-policy", name) for name in ("fcfs", "lpm")},
    "host tier": {
        "none": (),
        **{
            name: (*HOST, "--hicache-write-policy", name)
            for name in ("write_back", "write_through")
        },
    },
    "strategy": {
        name: ("--mamba-radix-cache-strategy", name)
        for name in ("extra_buffer", "extra_buffer_lazy", "no_buffer")
    },
    "overlap": {"on": (), "off": ("--disable-overlap-schedule",)},
    "policy": {number: ("--marconi-evict-policy", number) for number in ("1", "2", "3")},
    "drafts": {"none": (), "NEXTN": NEXTN},
    "int8 states": {"no": (), "yes": ("--enable-int8-mamba-checkpoint",)},
    "DP attention": {"no": (), "yes": DP_ATTENTION},
    "page": {size: ("--page-size", size) for size in ("1", "64")},
}
_OURS = ("policy", "admission")


def allowed(chosen: Mapping[str, str]) -> bool:
    """Whether SGLang serves these together; settings that are not chosen yet rule nothing out."""
    strategy, overlap = chosen.get("strategy"), chosen.get("overlap")
    if strategy == "extra_buffer_lazy" and overlap == "off":
        return False
    if strategy == "no_buffer" and (overlap == "on" or chosen.get("page") == "64"):
        return False
    # On a CPU SGLang turns overlap off where there are drafts, and lazy buffers need it.
    if chosen.get("drafts") == "NEXTN" and (strategy == "extra_buffer_lazy" or overlap == "on"):
        return False
    # The CPU platform was not seen to serve both.
    if chosen.get("drafts") == "NEXTN" and chosen.get("DP attention") == "yes":
        return False
    return not (chosen.get("int8 states") == "yes" and chosen.get("host tier", "none") != "none")


def pairs() -> tuple[Launch, ...]:
    """The launches, the same every time."""
    names = list(SETTINGS)

    def fits(values: list[str]) -> bool:
        return allowed(dict(zip(names, values, strict=False)))

    found = AllPairs([list(values) for values in SETTINGS.values()], filter_func=fits)
    return tuple(
        _launch(number, dict(zip(names, values, strict=True)))
        for number, values in enumerate(found, FIRST + 1)
    )


def _launch(number: int, chosen: Mapping[str, str]) -> Launch:
    def flags(ours: bool) -> tuple[str, ...]:
        return tuple(
            flag
            for name, value in chosen.items()
            if (name in _OURS) is ours
            for flag in SETTINGS[name][value]
        )

    typed = ", ".join(f"{name} {value}" for name, value in chosen.items())
    tiny = "qwen3.5-mtp" if chosen["drafts"] == "NEXTN" else "qwen3-next"
    return Launch(number, "pairs", typed, tiny, flags(False), policy=flags(True))
