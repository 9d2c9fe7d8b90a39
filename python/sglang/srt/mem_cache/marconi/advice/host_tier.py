"""How large a host tier, and which write policy, would have saved most prefill time?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sglang.srt.mem_cache.marconi.advice.recording import HashedRequest
from sglang.srt.mem_cache.marconi.advice.replay import (
    DEFAULT_RATIO,
    POLICY_ROWS,
    STOCK,
    WORTHWHILE,
    Option,
    server_shape,
    shares,
)
from sglang.srt.mem_cache.marconi.eviction.policy import HostOrderer
from sglang.srt.mem_cache.marconi.eviction.savings import CostModel
from sglang.srt.mem_cache.marconi.tuning.hosted_cache import HostedShadowCache, HostShape
from sglang.srt.mem_cache.marconi.tuning.splits import resplit

#: ``--hicache-write-policy`` that are tried; SGLang's default is the first.
TRIED_WRITE_POLICIES = ("write_through", "write_back")


@dataclass(frozen=True)
class HostSpeeds:
    """What a prefill and a copy take.

    Attributes:
        flops: FLOP/s of a prefill.
        bytes: bytes a second between device and host, one way.
    """

    flops: float
    bytes: float


@dataclass(frozen=True)
class HostOption:
    """A way to run the server above a host tier.

    Attributes:
        policy: a key of :data:`POLICY_ROWS`.
        ratio: ``--mamba-full-memory-ratio``.
        host_ratio: ``--hicache-ratio``: the host's memory in multiples of the device's.
        write_policy: ``--hicache-write-policy``.
        saved: share of the prompts' prefill seconds that it saves, copies that are waited for paid.
        token_hit_rate: share of the prompts' tokens that hit.
    """

    policy: str
    ratio: float
    host_ratio: float
    write_policy: str
    saved: float
    token_hit_rate: float

    @property
    def title(self) -> str:
        """For a reader."""
        return f"{self.policy} under {self.write_policy} with ratio {self.ratio:g}"

    @property
    def flags(self) -> str:
        """What the launch command of its policy needs beside it."""
        return (
            f"--enable-hierarchical-cache --hicache-ratio {self.host_ratio:g} "
            f"--hicache-write-policy {self.write_policy}"
        )


@dataclass(frozen=True)
class HostAdvice:
    """What saves most above a host tier of one size.

    Attributes:
        host_ratio: the size.
        best: of all that was tried; ``stock`` unless that is worth its flags.
        stock: LRU under ``write_through`` at the default split.
        tried: the best split of each policy and write policy.
    """

    host_ratio: float
    best: HostOption
    stock: HostOption
    tried: tuple[HostOption, ...]


def advise_host(
    requests: Sequence[HashedRequest],
    cost: CostModel,
    memory_bytes: float,
    *,
    block_tokens: int,
    ratios: Sequence[float],
    rows: Sequence[str],
    host_ratios: Sequence[float],
    speeds: HostSpeeds,
) -> tuple[HostAdvice, ...]:
    """Replay ``requests``, one at a time, above a host tier of each size.

    Args:
        memory_bytes: of both of the device's pools together.
        rows: of :data:`POLICY_ROWS`; of them those that order the host are tried, and stock.
        ratios: splits to try, beside the default; at which stock must have room.
    """
    chosen = [STOCK, *(name for name in dict.fromkeys(rows) if orders_host_tier(name, cost))]
    splits = sorted({*ratios, DEFAULT_RATIO})
    found = []
    for host_ratio in dict.fromkeys(host_ratios):
        options = [
            HostOption(policy, ratio, host_ratio, write_policy, *shares)
            for policy in chosen
            for write_policy in TRIED_WRITE_POLICIES
            for ratio in splits
            for shares in _replay(
                *(requests, cost, memory_bytes, block_tokens, policy, ratio),
                *(host_ratio, write_policy, speeds),
            )
        ]
        found.append(_advice(host_ratio, options))
    return tuple(found)


def orders_host_tier(name: str, cost: CostModel) -> bool:
    """Whether a row of :data:`POLICY_ROWS` is tried beside stock's LRU."""
    row = POLICY_ROWS[name]
    plain = row.admission == "sglang" and row.states_per_path < 0
    return plain and isinstance(row.static(cost), HostOrderer)


def _replay(
    requests: Sequence[HashedRequest],
    cost: CostModel,
    memory_bytes: float,
    block_tokens: int,
    policy: str,
    ratio: float,
    host_ratio: float,
    write_policy: str,
    speeds: HostSpeeds,
) -> Iterator[tuple[float, float]]:
    """Shares of seconds and of tokens that are saved; none where the memory is too little."""
    row = POLICY_ROWS[policy]
    shape = resplit(server_shape(row, block_tokens), cost, memory_bytes, ratio)
    if shape is None:
        return
    pools = int(host_ratio * shape.kv_blocks), int(host_ratio * shape.state_slots)
    cache = HostedShadowCache(shape, row.static(cost), HostShape(*pools, write_policy))
    saved, token_hit_rate = shares(cache, requests, cost)
    needed = sum(cost.flops(0, request.input_length) for request in requests)
    paid = cache.waited_bytes(cost) / speeds.bytes * speeds.flops
    yield saved - paid / max(needed, 1.0), token_hit_rate


def _advice(host_ratio: float, options: Sequence[HostOption]) -> HostAdvice:
    tried: dict[tuple[str, str], HostOption] = {}
    for option in options:
        known = tried.get((option.policy, option.write_policy))
        if known is None or option.saved > known.saved:
            tried[option.policy, option.write_policy] = option
    default = (STOCK, TRIED_WRITE_POLICIES[0], DEFAULT_RATIO)
    stock = next(o for o in options if (o.policy, o.write_policy, o.ratio) == default)
    best = max(options, key=lambda option: option.saved)
    worth = best.saved >= stock.saved + WORTHWHILE
    return HostAdvice(host_ratio, best if worth else stock, stock, tuple(tried.values()))


def host_text(found: Sequence[HostAdvice], speeds: HostSpeeds, without: Option) -> str:
    """Prefill seconds saved, in percent: policies and write policies by row, sizes by column.

    Args:
        without: the best with a pool each for states and KV, and no host tier.
    """
    lines = [
        "Above a host tier: prefill seconds saved, %, each at the --mamba-full-memory-ratio (in "
        "brackets) that saves most,",
        f"at {speeds.flops / 1e12:g} TFLOP/s, copies at {speeds.bytes / 1e9:g} GB/s paid, by "
        "--hicache-ratio",
        f"{'policy':<28}{'write policy':<16}" + "".join(f"{a.host_ratio:>14g}" for a in found),
    ]
    for place, first in enumerate(found[0].tried):
        options = [advice.tried[place] for advice in found]
        cells = (f"{100 * one.saved:.1f} ({one.ratio:g})" for one in options)
        lines.append(
            f"{first.policy:<28}{first.write_policy:<16}" + "".join(f"{cell:>14}" for cell in cells)
        )
    lines.append(
        f"{without.policy:<28}{'no host tier':<16}"
        f"{f'{100 * without.saved:.1f} ({without.ratio:g})':>14}"
    )
    return "\n".join(lines)
