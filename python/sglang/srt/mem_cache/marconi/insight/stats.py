"""What the cache did: victims, what they cost, what hits saved, and why hits were lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import NamedTuple

from sglang.srt.mem_cache.marconi.eviction.savings import CostModel


class VictimKind(Enum):
    """What an eviction took."""

    STATE_ONLY = "state_only"
    LEAF_WITH_STATE = "leaf_with_state"
    LEAF_KV_ONLY = "leaf_kv_only"

    # Enum's own hashes the name, in Python.
    __hash__ = object.__hash__


class Lookup(NamedTuple):
    """Where one request's prompt stood in the cache when it was admitted; depths in tokens.

    ``hit <= deepest_state <= deepest_kv <= input_tokens``: the request resumed at ``hit``;
    without evictions it would have resumed at ``deepest_state``, and its tokens had been seen up
    to ``deepest_kv``.

    Attributes:
        input_tokens: length of the prompt.
        hit: tokens that need no prefill.
        state_kv_alive: ``deepest_state`` lies where KV still lives.
    """

    input_tokens: int
    hit: int
    deepest_state: int
    deepest_kv: int
    state_kv_alive: bool

    @property
    def lost(self) -> dict[str, int]:
        """Tokens seen before and prefilled again, by reason."""
        evicted = max(self.deepest_state - self.hit, 0)
        return {
            "state_evicted": evicted if self.state_kv_alive else 0,
            "kv_evicted": 0 if self.state_kv_alive else evicted,
            "never_admitted": max(self.deepest_kv - max(self.deepest_state, self.hit), 0),
        }


#: Victims are priced and hashed in batches of so many: one at a time, each would be slower.
MOST_PENDING = 32


class _Victims:
    """Sums over victims and their running hash; the last few are added when somebody asks."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._pending: list[tuple[str, VictimKind, int, int, int, int]] = []
        self._hash = blake2b(digest_size=8)
        self._kv_tokens = 0
        self._states = 0
        self._bytes = 0.0
        self._flops = 0.0
        self._kinds: Counter[tuple[str, str]] = Counter()

    def add(
        self,
        pool: str,
        kind: VictimKind,
        node_id: int,
        resumed: int,
        depth: int,
        kv_tokens: int,
    ) -> None:
        self._pending.append((pool, kind, node_id, resumed, depth, kv_tokens))
        if len(self._pending) >= MOST_PENDING:
            self._add_up()

    def _add_up(self) -> None:
        pending, self._pending = self._pending, []
        cost = self._cost
        for pool, kind, node_id, resumed, depth, kv_tokens in pending:
            self._hash.update(f"{pool} {kind.value} {node_id} {depth}\n".encode())
            self._kinds[pool, kind.value] += 1
            self._kv_tokens += kv_tokens
            self._bytes += cost.kv_bytes_per_token * kv_tokens
            if kind is not VictimKind.LEAF_KV_ONLY:
                self._states += 1
                self._bytes += cost.state_bytes
            if resumed < depth:
                self._flops += float(cost.flops(resumed, depth))

    @property
    def kinds(self) -> Counter[tuple[str, str]]:
        self._add_up()
        return self._kinds

    @property
    def digest(self) -> bytes:
        self._add_up()
        return self._hash.digest()

    @property
    def kv_tokens(self) -> int:
        self._add_up()
        return self._kv_tokens

    @property
    def states(self) -> int:
        self._add_up()
        return self._states

    @property
    def freed_bytes(self) -> float:
        self._add_up()
        return self._bytes

    @property
    def flops(self) -> float:
        self._add_up()
        return self._flops


@dataclass
class MarconiStats:
    """Counters since the server started; they only grow, also over a cache flush.

    Keys of ``victims`` are (pool under pressure, kind), of ``fallbacks`` the pool. Bytes are
    those of this tensor-parallel rank on all pipeline stages, FLOPs those of the whole model.
    ``victim_digest`` is a running hash of all victims in order: equal on two ranks exactly when
    both evicted the same. ``states_taken_back`` counts states that judicious admission did not
    leave in the tree, which are no victims, and ``prefill_cuts`` the forwards that it ended at
    a branch point. ``adoptions`` counts changes of the weight; what it says of the tuner
    only the rank that has it counts. ``backups_skipped`` counts states that left the device under
    ``write_back`` and were not worth a copy on the host. ``eff_weight`` is the weight in force, 0
    under LRU. Keys of ``hints`` are what was said of what follows a request, and "malformed".
    """

    cost: CostModel
    requests: int = 0
    requests_hit: int = 0
    input_tokens: int = 0
    hit_tokens: int = 0
    flops_saved: float = 0.0
    flops_needed: float = 0.0
    states_taken_back: int = 0
    prefill_cuts: int = 0
    backups_skipped: int = 0
    errors: int = 0
    view_rebuilds: int = 0
    tuner_answers: int = 0
    tuner_failures: int = 0
    tuner_restarts: int = 0
    adoptions: int = 0
    eff_weight: float = 0.0
    lost_tokens: Counter[str] = field(default_factory=Counter)
    hints: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    _victims: _Victims = field(init=False)

    def __post_init__(self) -> None:
        self._victims = _Victims(self.cost)

    def count_lookup(self, lookup: Lookup, flops_saved: float, flops_needed: float) -> None:
        """Count one admitted request.

        Args:
            flops_saved: FLOPs of prefilling its hit.
            flops_needed: FLOPs of prefilling all of it without a cache.
        """
        self.requests += 1
        self.requests_hit += lookup.hit > 0
        self.input_tokens += lookup.input_tokens
        self.hit_tokens += lookup.hit
        self.flops_saved += flops_saved
        self.flops_needed += flops_needed
        for reason, tokens in lookup.lost.items():
            self.lost_tokens[reason] += tokens

    def count_victim(
        self,
        pool: str,
        kind: VictimKind,
        *,
        node_id: int,
        resumed: int,
        depth: int,
        kv_tokens: int,
    ) -> None:
        """Count one eviction made while ``pool`` was short, of the node that ends at ``depth``.

        Args:
            resumed: where a request would resume without its state; ``depth`` if it has none.
            kv_tokens: tokens of KV that went.
        """
        self._victims.add(pool, kind, node_id, resumed, depth, kv_tokens)

    @property
    def victims(self) -> Counter[tuple[str, str]]:
        return self._victims.kinds

    @property
    def victim_digest(self) -> bytes:
        return self._victims.digest

    @property
    def bytes_evicted(self) -> float:
        return self._victims.freed_bytes

    @property
    def flops_evicted(self) -> float:
        return self._victims.flops

    @property
    def kv_tokens_evicted(self) -> int:
        return self._victims.kv_tokens

    @property
    def states_evicted(self) -> int:
        return self._victims.states

    def as_dict(self) -> dict[str, object]:
        """The counters as plain JSON types."""
        return {
            "requests": self.requests,
            "requests_hit": self.requests_hit,
            "input_tokens": self.input_tokens,
            "hit_tokens": self.hit_tokens,
            "token_hit_rate": self.hit_tokens / self.input_tokens if self.input_tokens else 0.0,
            "flops_saved": self.flops_saved,
            "flops_saved_fraction": (
                self.flops_saved / self.flops_needed if self.flops_needed else 0.0
            ),
            "bytes_evicted": self.bytes_evicted,
            "flops_evicted": self.flops_evicted,
            "kv_tokens_evicted": self.kv_tokens_evicted,
            "states_evicted": self.states_evicted,
            "states_taken_back": self.states_taken_back,
            "prefill_cuts": self.prefill_cuts,
            "backups_skipped": self.backups_skipped,
            "victim_digest": self.victim_digest.hex(),
            "victims": {
                f"{pool}:{kind}": count for (pool, kind), count in sorted(self.victims.items())
            },
            "lost_tokens": {
                reason: self.lost_tokens[reason]
                for reason in ("state_evicted", "kv_evicted", "never_admitted")
            },
            "hints": {said: count for said, count in sorted(self.hints.items()) if count},
            "fallbacks_to_lru": dict(sorted(self.fallbacks.items())),
            "errors": self.errors,
            "view_rebuilds": self.view_rebuilds,
            "tuner_answers": self.tuner_answers,
            "tuner_failures": self.tuner_failures,
            "tuner_restarts": self.tuner_restarts,
            "adoptions": self.adoptions,
            "eff_weight": self.eff_weight,
        }
