"""A model's prefill cost as a function of where it starts and ends, in O(1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from sglang.srt.mem_cache.marconi.costs.layers import LayerCost, ScoreTerm

AttentionCount = Literal["square", "causal"]
"""How attended pairs are counted.

``"square"``, the default everywhere: L tokens cost L^2 pairs, the square which the paper's
``4*L^2*D`` (arXiv:2411.19379) and ``torch.utils.flop_counter`` count, so that figures compare with
theirs. ``"causal"``: the ``L*(L+1)/2`` pairs that the mask leaves, which is what a kernel computes
that skips masked blocks.
"""


@dataclass(frozen=True)
class ModelCost:
    """FLOPs to prefill tokens, and bytes to keep what they leave.

    ``flops(L) = a*L + b*L^2`` FLOPs, plus one term per sliding window, which is quadratic up to the
    window and linear after it. FLOPs are those of the whole model over all its shards. Bytes are
    those of one tensor-parallel shard: ``kv_bytes_per_token`` of KV for every attention layer,
    ``state_bytes`` of one cached recurrent state (temporal and convolution, every recurrent layer).

    Embeddings are a lookup and cost no FLOP. The LM head is left out: a prefill applies it to the
    last token only, whatever the prefix. Vision and audio towers are left out too.

    ``layers`` keeps the parts that ``a`` and ``b`` were added up from, when they are known.
    """

    LM_HEAD_INCLUDED: ClassVar[bool] = False

    a: int
    b: int
    kv_bytes_per_token: int
    state_bytes: int
    windows: tuple[ScoreTerm, ...] = ()
    attention: AttentionCount = "square"
    name: str = ""
    architecture: str = ""
    layers: LayerCost | None = None

    def flops(self, start: int, end: int | None = None) -> int:
        """FLOPs to prefill tokens ``start..end-1`` on a surviving prefix of ``start`` tokens.

        With one argument, FLOPs of the first ``start`` tokens, as ``range`` reads its arguments.
        Additive: ``flops(0, m) + flops(m, n) == flops(0, n)``, exactly.

        Raises:
            ValueError: unless ``0 <= start <= end``.
        """
        first, last = (0, start) if end is None else (start, end)
        if not 0 <= first <= last:
            raise ValueError(f"tokens {first}..{last} are not a range of a sequence")
        return self._total(last) - self._total(first)

    def bytes(self, tokens: int, states: int = 1) -> int:
        """Bytes on one shard of ``tokens`` tokens of KV and ``states`` cached states."""
        return tokens * self.kv_bytes_per_token + states * self.state_bytes

    def with_pool_bytes(self, kv_bytes_per_token: int, state_bytes: int) -> ModelCost:
        """The same FLOPs with the bytes that a running server's pools really use."""
        return replace(self, kv_bytes_per_token=kv_bytes_per_token, state_bytes=state_bytes)

    def describe(self) -> str:
        """One line for a log: what is counted, and the numbers."""
        title = " ".join(part for part in (self.architecture, self.name) if part) or "model"
        windows = "".join(f", window {term.window}" for term in self.windows)
        return (
            f"{title}: {self.a / 1e9:.3f} GFLOP/token + {self.b / 1e3:.1f} kFLOP/token^2 "
            f"({self.attention} attention{windows}, without LM head), "
            f"{self.kv_bytes_per_token} B KV/token, {self.state_bytes} B/state"
        )

    def _total(self, tokens: int) -> int:
        total = self.a * tokens + self.b * tokens * tokens
        for term in self.windows:
            total += term.flops_per_pair * attended_pairs(tokens, term.window, self.attention)
        return total


def attended_pairs(tokens: int, window: int | None, attention: AttentionCount) -> int:
    """Pairs (query, key) in the attention of ``tokens`` tokens, counted as ``attention`` says.

    A query reads ``min(position, window)`` keys, itself included. ``"causal"`` adds these up;
    ``"square"`` counts ``2*keys - 1`` for each, which without a window is ``tokens**2``.
    """
    inside = tokens if window is None else min(tokens, window)
    outside = tokens - inside
    keys_outside = 0 if window is None else outside * window
    if attention == "square":
        return inside * inside + 2 * keys_outside - outside
    return inside * (inside + 1) // 2 + keys_outside


def model_cost(
    layers: LayerCost,
    *,
    kv_dtype_bytes: int,
    temporal_dtype_bytes: int,
    conv_dtype_bytes: int,
    attention: AttentionCount = "square",
    name: str = "",
    architecture: str = "",
) -> ModelCost:
    """Add up the layers of a model; ``*_dtype_bytes`` are bytes per element.

    Raises:
        ValueError: for an unknown ``attention``.
    """
    if attention not in ("square", "causal"):
        raise ValueError(f"attention must be 'square' or 'causal', not {attention!r}")
    per_pair = sum(term.flops_per_pair for term in layers.scores if term.window is None)
    per_token = layers.matmul + layers.conv + layers.scan
    # A causal pair count is (L^2 + L)/2, so half of the work per pair falls on each power of L.
    # Work per pair is a number of multiply-adds and therefore even.
    halves = per_pair // 2
    return ModelCost(
        a=per_token + (halves if attention == "causal" else 0),
        b=halves if attention == "causal" else per_pair,
        kv_bytes_per_token=layers.kv_elements * kv_dtype_bytes,
        state_bytes=layers.temporal_elements * temporal_dtype_bytes
        + layers.conv_elements * conv_dtype_bytes,
        windows=tuple(term for term in layers.scores if term.window is not None),
        attention=attention,
        name=name,
        architecture=architecture,
        layers=layers,
    )
