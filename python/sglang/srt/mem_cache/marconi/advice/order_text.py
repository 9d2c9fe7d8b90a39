"""Orders of service as a table, and what to do about them in words."""

from __future__ import annotations

from sglang.srt.mem_cache.marconi.advice.load.schedules import FCFS
from sglang.srt.mem_cache.marconi.advice.orders import (
    WORTH_A_FLAG,
    LoadedServer,
    OrderAdvice,
    OrderOutcome,
    is_fair,
)

_COLUMNS = ("FLOPs saved, %", "requests/s", "TTFT mean, s", "P95, s", "P99, s", "longest wait, s")


def order_text(name: str, advice: OrderAdvice, server: LoadedServer) -> str:
    """The table of one option, and what is advised.

    Args:
        name: of the option.
    """
    outcomes = advice.outcomes.values()
    lines = [
        f"{name}, by --schedule-policy: {advice.requests} requests that arrive in "
        f"{advice.seconds:.0f} s, {server.running} at a time, "
        f"{server.service.prefill_flops_per_second / 1e12:g} TFLOP/s",
        _line("order", _COLUMNS),
        *map(_row, outcomes),
    ]
    if advice.recorded is not None:
        times = (f"{seconds:.2f}" for seconds in advice.recorded)
        lines.append(_line("recorded, first chunk", ("-", "-", *times, "-")))
    if not all(one.keeps_up for one in outcomes):
        lines.append("*: the server cannot keep up, so waits grow with the recording's length")
    lines += [f"{one.unserved} requests do not fit" for one in outcomes if one.unserved][:1]
    return "\n".join([*lines, *verdict(advice)])


def _row(one: OrderOutcome) -> str:
    times = (one.ttft_mean, one.ttft_p95, one.ttft_p99, one.longest_wait)
    return _line(
        one.order + "*" * (not one.keeps_up),
        (
            f"{100 * one.saved:.1f}",
            f"{one.requests_per_second:.2f}",
            *(f"{seconds:.2f}" for seconds in times),
        ),
    )


def _line(first: str, cells: tuple[str, ...]) -> str:
    return f"{first:<24}" + "".join(f"{cell:>17}" for cell in cells)


def verdict(advice: OrderAdvice) -> list[str]:
    """Which order to serve in, and what each other that gains would cost whom."""
    fcfs = advice.outcomes[FCFS.name]
    if advice.advised != FCFS.name:
        best = advice.outcomes[advice.advised]
        lines = [f"Serve in the order {best.order}: {_gain(best, fcfs)}. {_waits(best, fcfs)}."]
    elif advice.costly:
        lines = [f"Leave the order at {FCFS.name}. Others gain, at a cost:"]
    else:
        share = f"{100 * WORTH_A_FLAG:g} %"
        return [f"No order takes {share} off the mean TTFT: leave it at {FCFS.name}."]
    return lines + [_cost(advice.outcomes[order], fcfs) for order in advice.costly]


def _cost(one: OrderOutcome, fcfs: OrderOutcome) -> str:
    gain = _gain(one, fcfs)
    if one.keeps_up and not fcfs.keeps_up:
        gain += f", and the server keeps up as it does not under {FCFS.name}"
    against = ["the server cannot keep up"] * (not one.keeps_up)
    against += ["some wait too long"] * (not is_fair(one, fcfs))
    return f"{one.order} is not advised, for {' and '.join(against)}: {gain}. {_waits(one, fcfs)}."


def _gain(best: OrderOutcome, fcfs: OrderOutcome) -> str:
    less = 1 - best.ttft_mean / fcfs.ttft_mean
    return f"mean TTFT {best.ttft_mean:.2f} s, {100 * less:.0f} % less than under {FCFS.name}"


def _waits(one: OrderOutcome, fcfs: OrderOutcome) -> str:
    longest = (
        f"The longest wait is {one.longest_wait:.2f} s ({FCFS.name}: {fcfs.longest_wait:.2f} s)"
    )
    late = one.passed_over
    if not late.requests:
        return longest
    return (
        f"{longest}. Waiting longer than any under {FCFS.name}: {late.requests} requests, of them "
        f"{late.begin} at the start of a session; tokens to compute for each {late.computed:,.0f}, "
        f"for the others {late.others_computed:,.0f}"
    )
