"""The same row from the paper's world: one byte budget, radix nodes that each own a state."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache
from typing import Any

from paper import MODES, PaperCache, PaperConfig, PaperModel
from paper.sequences import encode
from sglang.srt.mem_cache.marconi.advice.load.served import Served
from traces import Request
from traces.expand import expand_block

from lab.costs import paper_shape
from lab.spec import RunSpec
from lab.totals import REASONS, Totals

#: Policies by the names of the paper's figures.
PAPER_POLICIES = ("vllm+", "sglang+", "marconi", "marconi:ALPHA")
#: Of made-up token ids; large, so that equal tokens mean equal blocks.
_VOCABULARY = 1 << 31


def paper_config(spec: RunSpec) -> PaperConfig:
    """The simulator's settings for a spec.

    Raises:
        ValueError: an unknown policy, mode or model, or no budget in bytes.
    """
    shape = paper_shape(spec.model)
    if spec.memory_gib is None:
        raise ValueError("--engine paper has one budget of bytes; allowed is --memory-gib")
    if spec.paper_mode not in MODES:
        raise ValueError(f"--paper-mode is {spec.paper_mode!r}; allowed are {', '.join(MODES)}")
    config = PaperConfig(
        policy="vllm",
        capacity_bytes=int(spec.memory_gib * 2**30),
        fixes=MODES[spec.paper_mode],
        model=PaperModel(
            shape.num_ssm_layers, shape.num_attn_layers, shape.num_mlp_layers, shape.d, shape.n
        ),
    )
    name, colon, alpha = spec.policy.partition(":")
    if spec.policy == "vllm+":
        return config
    if spec.policy == "sglang+":
        return replace(config, policy="v1")
    if spec.policy == "marconi":
        return replace(config, policy="v2")
    if name == "marconi" and colon:
        return replace(config, policy="v3", alpha=float(alpha))
    raise ValueError(
        f"--policy is {spec.policy!r}; allowed with --engine paper are {', '.join(PAPER_POLICIES)}"
    )


def simulate_paper(spec: RunSpec) -> dict[str, Any]:
    """Run a spec in the paper's simulator, and return its row.

    Raises:
        OSError, ValueError: a trace, policy, mode or model that cannot be used.
    """
    started = time.perf_counter()
    config = paper_config(spec)
    cache = PaperCache(config)
    totals = Totals(paper_shape(spec.model).as_model_cost(spec.model), spec.block)
    requests = spec.requests()
    for request in requests:
        prompt, output = token_bytes(request, spec.block)
        record = cache.serve(prompt, output)
        totals.add(Served(record.input_tokens, record.matched))
    summary = cache.summary()
    return {
        **spec.columns(),
        **totals.as_row(),
        "corrupt_lines": requests.skipped,
        "kv_tokens": None,
        "state_slots": None,
        "capacity_bytes": config.capacity_bytes,
        "paper_mode": spec.paper_mode,
        "flops_saved": summary.flops_saved_share,
        "lost_tokens": dict.fromkeys(REASONS),
        "evictions": {"leaf": summary.evicted_leaves, "merge": summary.evicted_merges},
        "alpha": summary.alpha,
        "seconds": round(time.perf_counter() - started, 3),
    }


def token_bytes(request: Request, block: int) -> tuple[bytes, bytes]:
    """Prompt and output as encoded tokens: the trace's own, or whole blocks made from its ids."""
    if request.input_tokens is not None and request.output_tokens is not None:
        return encode(request.input_tokens), encode(request.output_tokens)
    prompt = b"".join(_block_bytes(id, block) for id in request.prompt_ids)
    return prompt, b"".join(_block_bytes(id, block) for id in request.output_ids)


@lru_cache(1 << 16)
def _block_bytes(id: int, block: int) -> bytes:
    return encode(expand_block(id, block, _VOCABULARY))
