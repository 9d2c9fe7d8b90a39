"""The simulator's loop: a logical clock, a lookup and an insert a request, one byte budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from paper.cost import PaperModel
from paper.metrics import Metrics
from paper.modes import AS_PUBLISHED, Fixes
from paper.policies import POLICIES, Policy
from paper.records import Eviction, Lookup, RequestRecord, Summary
from paper.sequences import Tokens, encode, path_hash, token_count
from paper.stores import BlockStore, LruRadixStore, ScoredRadixStore, Store
from paper.tuner import Bootstrap, TunerReport


@dataclass(frozen=True)
class PaperConfig:
    """One run of the simulator."""

    policy: Policy
    capacity_bytes: int | float
    alpha: float = 0.0
    """Weight of FLOP efficiency: fixed in V3, before tuning in V2, unused elsewhere."""
    bootstrap_multiplier: int = 5
    """V2 tunes at this many times the number of the first request that evicts."""
    fixes: Fixes = AS_PUBLISHED
    model: PaperModel = field(default_factory=PaperModel)
    block_tokens: int = 32
    """Tokens of a block of vLLM+."""
    details: bool = False
    """Also record the path hash of every victim, and the margin by which it was chosen."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy {self.policy!r} is none of {', '.join(POLICIES)}")
        if not self.capacity_bytes >= 0:
            raise ValueError(f"a capacity of {self.capacity_bytes} bytes is negative")
        if not self.alpha >= 0:
            raise ValueError(f"alpha is {self.alpha}; a weight is 0 or more")
        if self.bootstrap_multiplier < 1:
            raise ValueError(f"a bootstrap multiplier of {self.bootstrap_multiplier} is below 1")
        if self.block_tokens < 1:
            raise ValueError(f"a block of {self.block_tokens} tokens is empty")


@dataclass(frozen=True)
class TreeNode:
    """A radix node as it stands, for comparison and pictures."""

    path_tokens: int
    path_hash: str
    own_tokens: int
    last_access: int
    children: int


class PaperCache:
    """The published simulator, for one policy: feed requests in order, read what happened.

    There is no concurrency: a request is fully inserted before the next is looked up, and nothing
    is pinned in between (specification 2 and 4).
    """

    def __init__(self, config: PaperConfig) -> None:
        self.config = config
        self._clock = 0
        self._requests = 0
        self._metrics = Metrics(config.model, config.capacity_bytes)
        self._scored: ScoredRadixStore | None = None
        self._store: Store = self._open_store()
        self._bootstrap = Bootstrap(config.bootstrap_multiplier) if config.policy == "v2" else None

    @property
    def tuner(self) -> TunerReport | None:
        """What the tuner found, once it ran."""
        return None if self._bootstrap is None else self._bootstrap.report

    @property
    def tree_bytes(self) -> int:
        """Bytes of all states and KV held (specification 2)."""
        model, store = self.config.model, self._store
        return model.state_bytes * store.nodes + model.kv_bytes_per_token * store.kv_tokens

    def serve(self, input_tokens: Tokens, output_tokens: Tokens) -> RequestRecord:
        """Look the input up, then insert input and output.

        Raises:
            ValueError: if a token is no unsigned 32-bit integer; the cache is unchanged.
        """
        query, answer = encode(input_tokens), encode(output_tokens)
        self._requests += 1
        self._clock += 1
        lookup = self._store.lookup(query, self._clock)
        if self._bootstrap is not None:
            self._bootstrap.looked_up(query, answer)
        inner, wanted, evictions = self._insert(query + answer)
        record = RequestRecord(
            index=self._requests - 1,
            input_tokens=token_count(query),
            output_tokens=token_count(answer),
            lookup=lookup,
            inserted=inner,
            bytes_to_remove=wanted,
            evictions=evictions,
            nodes=self._store.nodes,
            kv_tokens=self._store.kv_tokens,
            tree_bytes=self.tree_bytes,
        )
        self._metrics.add(record)
        return record

    def summary(self) -> Summary:
        """Totals of all requests so far, and the state of the cache."""
        return replace(
            self._metrics.totals,
            nodes=self._store.nodes,
            kv_tokens=self._store.kv_tokens,
            clock=self._clock,
            alpha=None if self._scored is None else self._scored.alpha,
            bootstrap_window=None if self._bootstrap is None else self._bootstrap.window,
            stale_parents=self._store.stale_parents,
        )

    def restart_metrics(self) -> None:
        """Forget the totals, keep the contents: what follows a warm-up is counted alone."""
        self._metrics = Metrics(self.config.model, self.config.capacity_bytes)

    def tree(self) -> list[TreeNode]:
        """The radix nodes in pre-order, without the root; empty for vLLM+."""
        return [
            TreeNode(
                path_tokens=node.end,
                path_hash=path_hash(node.path()),
                own_tokens=node.own_tokens,
                last_access=node.last_access,
                children=len(node.children),
            )
            for node in self._store.radix_nodes()
        ]

    def _open_store(self) -> Store:
        config = self.config
        if config.policy == "vllm":
            return BlockStore(config.model, config.block_tokens, details=config.details)
        if config.policy == "v1":
            return LruRadixStore(config.model, details=config.details)
        self._scored = ScoredRadixStore(
            config.model, config.fixes, config.alpha, details=config.details
        )
        return self._scored

    def _insert(self, sequence: bytes) -> tuple[Lookup, int | float, list[Eviction]]:
        """The inner lookup, the bytes asked for (0: none), and the victims (specification 4)."""
        self._clock += 1
        self._maybe_tune()
        self._clock += 1
        inner = self._store.lookup(sequence, self._clock)
        need = self._store.need(token_count(sequence), inner)
        wanted = self.tree_bytes + need - self.config.capacity_bytes
        evictions: list[Eviction] = []
        if wanted > 0:
            self._clock += 1
            if self._bootstrap is not None:
                self._bootstrap.evicting(self._requests)
            evictions = self._store.evict(wanted, self._clock)
        self._store.store(sequence, self._clock)
        return inner, max(wanted, 0), evictions

    def _maybe_tune(self) -> None:
        if self._bootstrap is None or self._scored is None:
            return
        report = self._bootstrap.tune(self._requests, self._fresh_cache)
        if report is not None:
            self._scored.alpha = report.best_alpha

    def _fresh_cache(self, alpha: float) -> PaperCache:
        return PaperCache(replace(self.config, policy="v3", alpha=alpha, details=False))
