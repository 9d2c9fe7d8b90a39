"""What one layer costs: FLOPs per token, FLOPs per attended pair, and the bytes it leaves cached.

Every function here prices one block of one layer and returns a ``LayerCost``; blocks of a layer and
layers of a model are added with ``+``.

Conventions, the same for every kind of layer:

* one multiplication and one addition are two FLOPs, so a matrix product of shapes (m, k) and (k, n)
  is ``2*m*k*n``, as in ``torch.utils.flop_counter``;
* biases, norms, activations, gates applied elementwise, rotary embeddings, softmax and
  exponentials are left out;
* a recurrence is counted in its token-by-token form. Kernels run it in chunks, which costs more
  arithmetic per token by a factor that depends on the kernel's chunk size, never on the prefix;
* FLOPs are those of the whole model; elements of KV and state are those of one tensor-parallel
  shard.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreTerm:
    """Work that grows with the pairs (query token, key token) of causal attention.

    ``flops_per_pair`` FLOPs for each pair, all heads together. ``window`` is the number of keys
    that one query reads at most, itself included; ``None`` when it reads its whole prefix.
    """

    flops_per_pair: int
    window: int | None = None


@dataclass(frozen=True)
class LayerCost:
    """The price of a block, a layer or a whole model.

    ``matmul``, ``conv`` and ``scan`` are FLOPs per token: projections, MLPs and routers; causal
    convolutions; the recurrence itself. ``scores`` is the work per attended pair. ``kv_elements``
    counts the elements that a token leaves in the KV cache, ``temporal_elements`` and
    ``conv_elements`` those of one cached recurrent state, all on one tensor-parallel shard.
    ``scale_elements`` is how many scales SGLang's int8 checkpoint keeps of a temporal state: one
    for each head and key channel.
    """

    matmul: int = 0
    conv: int = 0
    scan: int = 0
    scores: tuple[ScoreTerm, ...] = ()
    kv_elements: int = 0
    temporal_elements: int = 0
    conv_elements: int = 0
    scale_elements: int = 0

    def __add__(self, other: LayerCost) -> LayerCost:
        """Both blocks, one after the other; score terms of equal window are merged."""
        return LayerCost(
            matmul=self.matmul + other.matmul,
            conv=self.conv + other.conv,
            scan=self.scan + other.scan,
            scores=_merge_scores(self.scores + other.scores),
            kv_elements=self.kv_elements + other.kv_elements,
            temporal_elements=self.temporal_elements + other.temporal_elements,
            conv_elements=self.conv_elements + other.conv_elements,
            scale_elements=self.scale_elements + other.scale_elements,
        )


def _merge_scores(terms: tuple[ScoreTerm, ...]) -> tuple[ScoreTerm, ...]:
    by_window: dict[int | None, int] = {}
    for term in terms:
        by_window[term.window] = by_window.get(term.window, 0) + term.flops_per_pair
    return tuple(
        ScoreTerm(flops, window)
        for window, flops in sorted(by_window.items(), key=lambda item: (item[0] or 0, item[1]))
        if flops
    )


def linear(inputs: int, outputs: int) -> int:
    """FLOPs per token of a linear layer from ``inputs`` to ``outputs`` features."""
    return 2 * inputs * outputs


def causal_conv(channels: int, kernel: int) -> int:
    """FLOPs per token of a depthwise causal convolution over ``kernel`` tokens."""
    return 2 * channels * kernel


def projection(inputs: int, outputs: int) -> LayerCost:
    """A linear layer on its own, for the parts which one architecture adds to a known layer."""
    return LayerCost(matmul=linear(inputs, outputs))


def heads_of_shard(heads: int, tp_size: int) -> int:
    """KV heads on one shard: divided while there are enough, replicated (one each) beyond."""
    return max(1, heads // tp_size)


# --- token mixers with a KV cache ---------------------------------------------------------------


def attention(
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    v_head_dim: int | None = None,
    output_gate: bool = False,
    window: int | None = None,
    tp_size: int = 1,
) -> LayerCost:
    """Softmax attention, multi-head or grouped-query (arXiv:2305.13245).

    Projections of q, k, v and out, and with ``output_gate`` a gate as wide as the output
    (Qwen3-Next doubles its q projection for it). A pair costs ``2*heads*head_dim`` for q.k and
    ``2*heads*v_head_dim`` for the weighted sum: with ``heads*head_dim == hidden`` and no grouping,
    L tokens cost the paper's ``8*L*D^2 + 4*L^2*D``. Partial rotary changes nothing.
    """
    v_dim = head_dim if v_head_dim is None else v_head_dim
    outputs = heads * head_dim + kv_heads * (head_dim + v_dim)
    outputs += heads * v_dim if output_gate else 0
    return LayerCost(
        matmul=linear(hidden, outputs) + linear(heads * v_dim, hidden),
        scores=(ScoreTerm(2 * heads * (head_dim + v_dim), window),),
        kv_elements=heads_of_shard(kv_heads, tp_size) * (head_dim + v_dim),
    )


def latent_attention(
    hidden: int,
    heads: int,
    *,
    q_lora_rank: int | None,
    kv_lora_rank: int,
    qk_nope_head_dim: int,
    qk_rope_head_dim: int,
    v_head_dim: int,
    gate_width: int = 0,
    window: int | None = None,
) -> LayerCost:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434), as a prefill runs it.

    A prefill expands the latent to full keys and values (``kv_b``), so a pair costs what it costs
    in multi-head attention. The expansion is charged to the token that is prefilled; expanding a
    cached prefix again for a later chunk is not counted. The cache holds the latent and the rotary
    part of the key, the same on every tensor-parallel shard. ``gate_width`` is the width of an
    output gate, 0 for none.
    """
    qk_dim = qk_nope_head_dim + qk_rope_head_dim
    query = (
        linear(hidden, heads * qk_dim)
        if q_lora_rank is None
        else linear(hidden, q_lora_rank) + linear(q_lora_rank, heads * qk_dim)
    )
    latent = kv_lora_rank + qk_rope_head_dim
    expand = linear(kv_lora_rank, heads * (qk_nope_head_dim + v_head_dim))
    out = linear(heads * v_head_dim, hidden)
    return LayerCost(
        matmul=query + linear(hidden, latent) + expand + out + linear(hidden, gate_width),
        scores=(ScoreTerm(2 * heads * (qk_dim + v_head_dim), window),),
        kv_elements=latent,
    )


def sparse_indexer(
    query_inputs: int,
    hidden: int,
    heads: int,
    key_heads: int,
    head_dim: int,
    *,
    pool: int = 1,
    weighted: bool = False,
    pool_gate: bool = False,
) -> LayerCost:
    """The scorer that picks the tokens which sparse attention reads (DeepSeek-V3.2's DSA, QSA).

    Queries of ``heads`` heads come from ``query_inputs`` features, keys from ``hidden``. Every
    query scores every pool of ``pool`` keys of its prefix, so this stays quadratic while the
    attention itself is windowed. ``weighted`` adds a learnt weight per head (DSA), ``pool_gate``
    the gate which compresses a pool (GLM). The indexer's own keys are cached too; their layout is
    the kernel's, so their bytes are only known from the pools.
    """
    matmul = linear(query_inputs, heads * head_dim) + linear(hidden, key_heads * head_dim)
    matmul += linear(hidden, heads) if weighted else 0
    matmul += linear(hidden, head_dim) if pool_gate else 0
    multiply_adds = heads * head_dim + (heads if weighted else 0)
    return LayerCost(matmul=matmul, scores=(ScoreTerm(2 * (multiply_adds // pool)),))


# --- token mixers with a recurrent state --------------------------------------------------------


def gated_delta_net(
    hidden: int,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    conv_kernel: int,
    *,
    tp_size: int = 1,
) -> LayerCost:
    """Gated DeltaNet, GDN (arXiv:2412.06464): one decay per head, a delta-rule state per head.

    Projections of q, k, v, the output gate z, the decay a and the write strength b; a convolution
    over q, k and v. ``key_dim`` and ``value_dim`` are those of one head.
    """
    keys, values = key_heads * key_dim, value_heads * value_dim
    channels = 2 * keys + values
    return LayerCost(
        matmul=linear(hidden, channels + values + 2 * value_heads) + linear(values, hidden),
        conv=causal_conv(channels, conv_kernel),
        scan=value_heads * delta_rule_flops(key_dim, value_dim),
        temporal_elements=value_heads // tp_size * value_dim * key_dim,
        scale_elements=value_heads // tp_size * key_dim,
        conv_elements=_conv_elements(values, key_heads, key_dim, conv_kernel, tp_size),
    )


def delta_rule_flops(key_dim: int, value_dim: int) -> int:
    """FLOPs of one token through one head of the gated delta rule (arXiv:2412.06464).

    The state S has ``key_dim*value_dim`` entries. Decay S: 1 per entry; read S.k: 2; write
    k*(b*(v - S.k)): 2 per entry and 2 per value for the bracket; read S.q: 2. A decay per key
    channel (KDA, arXiv:2510.26692) multiplies the same entries.
    """
    return 7 * key_dim * value_dim + 2 * value_dim


def kimi_delta_attention(
    hidden: int,
    heads: int,
    head_dim: int,
    conv_kernel: int,
    *,
    low_rank_decay: bool = True,
    low_rank_gate: bool = True,
    tp_size: int = 1,
) -> LayerCost:
    """Kimi Delta Attention, KDA (arXiv:2510.26692): a delta rule with a decay per key channel.

    q, k, v, the decay f, the write strength b and the output gate g. f and g pass through a
    bottleneck of ``head_dim`` unless they are full rank.
    """
    width = heads * head_dim
    bottleneck = linear(hidden, head_dim) + linear(head_dim, width)
    decay = bottleneck if low_rank_decay else linear(hidden, width)
    gate = bottleneck if low_rank_gate else linear(hidden, width)
    return LayerCost(
        matmul=linear(hidden, 3 * width + heads) + decay + gate + linear(width, hidden),
        conv=causal_conv(3 * width, conv_kernel),
        scan=heads * delta_rule_flops(head_dim, head_dim),
        temporal_elements=heads // tp_size * head_dim * head_dim,
        scale_elements=heads // tp_size * head_dim,
        conv_elements=3 * (width // tp_size) * (conv_kernel - 1),
    )


def jet_block(
    hidden: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    conv_kernel: int,
    generator_reduction: int,
    *,
    tp_size: int = 1,
) -> LayerCost:
    """JetBlock (arXiv:2508.15884): a delta rule behind a convolution that makes its own kernel.

    Only v is convolved, with a kernel that a two-layer network writes for each token. The state
    keeps room for q and k beside v (upstream ``configs/jet_nemotron.py``).
    """
    keys, values = heads * key_dim, heads * value_dim
    bottleneck = values // generator_reduction
    generator = linear(hidden, bottleneck) + linear(bottleneck, values * conv_kernel)
    return LayerCost(
        matmul=linear(hidden, 2 * keys + 2 * values + 2 * heads)
        + linear(values, hidden)
        + generator,
        conv=causal_conv(values, conv_kernel),
        scan=heads * delta_rule_flops(key_dim, value_dim),
        temporal_elements=heads // tp_size * value_dim * key_dim,
        scale_elements=heads // tp_size * key_dim,
        conv_elements=_conv_elements(values, heads, key_dim, conv_kernel, tp_size),
    )


def mamba1(
    hidden: int,
    inner: int,
    state: int,
    dt_rank: int,
    conv_kernel: int,
    *,
    tp_size: int = 1,
) -> LayerCost:
    """Mamba-1 (arXiv:2312.00752): ``state`` entries of state for each channel of ``inner``."""
    matmul = linear(hidden, 2 * inner) + linear(inner, dt_rank + 2 * state)
    return LayerCost(
        matmul=matmul + linear(dt_rank, inner) + linear(inner, hidden),
        conv=causal_conv(inner, conv_kernel),
        scan=selective_scan_flops(inner, state),
        temporal_elements=inner // tp_size * state,
        scale_elements=inner // tp_size * state,
        conv_elements=inner // tp_size * (conv_kernel - 1),
    )


def selective_scan_flops(inner: int, state: int) -> int:
    """FLOPs of one token of the selective scan (arXiv:2312.00752, algorithm 2).

    Per channel and state entry: dt*A 1, decay 1, write (dt*x)*B 1, add 1, read C.h 2. Per channel:
    dt*x 1, skip D*x and its addition 2.
    """
    return 6 * inner * state + 3 * inner


def mamba2(
    hidden: int,
    inner: int,
    heads: int,
    groups: int,
    state: int,
    conv_kernel: int,
    *,
    tp_size: int = 1,
) -> LayerCost:
    """Mamba-2 (arXiv:2405.21060): one decay per head, B and C shared by the heads of a group.

    The input projection makes z, x, B, C and dt; the convolution covers x, B and C.
    """
    channels = inner + 2 * groups * state
    return LayerCost(
        matmul=linear(hidden, inner + channels + heads) + linear(inner, hidden),
        conv=causal_conv(channels, conv_kernel),
        scan=state_space_dual_flops(inner, heads, state),
        temporal_elements=inner // tp_size * state,
        scale_elements=heads // tp_size * state,
        conv_elements=_conv_elements(inner, groups, state, conv_kernel, tp_size),
    )


def state_space_dual_flops(inner: int, heads: int, state: int) -> int:
    """FLOPs of one token of Mamba-2's recurrence (arXiv:2405.21060).

    Per channel and state entry: decay 1, write (dt*x)*B 1, add 1, read C.h 2. Per channel: dt*x 1,
    skip D*x and its addition 2. Per head: dt*A 1.
    """
    return 5 * inner * state + 3 * inner + heads


def lightning_attention(
    hidden: int,
    heads: int,
    head_dim: int,
    *,
    output_gate: bool = True,
    tp_size: int = 1,
) -> LayerCost:
    """Lightning attention (arXiv:2401.04658): linear attention with one fixed decay per head."""
    width = heads * head_dim
    return LayerCost(
        matmul=linear(hidden, (4 if output_gate else 3) * width) + linear(width, hidden),
        scan=heads * linear_attention_flops(head_dim, head_dim),
        temporal_elements=heads // tp_size * head_dim * head_dim,
        scale_elements=heads // tp_size * head_dim,
    )


def linear_attention_flops(key_dim: int, value_dim: int) -> int:
    """FLOPs of one token through one head of decayed linear attention (arXiv:2401.04658).

    Per state entry: decay 1, write k*v 1 and its addition 1, read q.S 2.
    """
    return 5 * key_dim * value_dim


def short_convolution(hidden: int, conv_kernel: int, *, tp_size: int = 1) -> LayerCost:
    """The gated short convolution of LFM2 (upstream ``lfm2.py``): in to B, C and x, and out."""
    return LayerCost(
        matmul=linear(hidden, 3 * hidden) + linear(hidden, hidden),
        conv=causal_conv(hidden, conv_kernel),
        conv_elements=hidden // tp_size * (conv_kernel - 1),
    )


def _conv_elements(inner: int, groups: int, state: int, conv_kernel: int, tp_size: int) -> int:
    """Elements of a shard's convolution state over ``inner`` channels and two sets of groups.

    Groups that the shards do not divide are replicated up to one per shard, as upstream's
    ``Mamba2StateShape.create`` (``configs/mamba_utils.py``) lays them out.
    """
    stored = groups if groups % tp_size == 0 else groups + tp_size - groups
    return (inner + 2 * stored * state) // tp_size * (conv_kernel - 1)


# --- channel mixers -----------------------------------------------------------------------------


def mlp(hidden: int, intermediate: int, *, gated: bool = True) -> LayerCost:
    """A dense MLP: up, down, and with ``gated`` a gate projection."""
    return LayerCost(matmul=_expert_flops(hidden, intermediate, gated))


def mixture_of_experts(
    hidden: int,
    experts: int,
    active: int,
    intermediate: int,
    *,
    shared_intermediate: int = 0,
    shared_gate: bool = False,
    latent: int | None = None,
    gated: bool = True,
    router: int | None = None,
) -> LayerCost:
    """Routed experts: the router, ``active`` experts, and a shared expert that every token takes.

    ``shared_intermediate`` is the width of all shared experts together, ``shared_gate`` the scalar
    gate in front of them. With ``latent`` the routed experts work in a narrower space, with one
    projection into it and one out of it per token. ``router`` replaces the FLOPs of a plain linear
    router.
    """
    width = hidden if latent is None else latent
    matmul = linear(hidden, experts) if router is None else router
    matmul += active * _expert_flops(width, intermediate, gated)
    matmul += _expert_flops(hidden, shared_intermediate, gated)
    matmul += linear(hidden, 1) if shared_gate and shared_intermediate else 0
    matmul += 0 if latent is None else linear(hidden, latent) + linear(latent, hidden)
    return LayerCost(matmul=matmul)


def _expert_flops(hidden: int, intermediate: int, gated: bool) -> int:
    return (3 if gated else 2) * linear(hidden, intermediate)
