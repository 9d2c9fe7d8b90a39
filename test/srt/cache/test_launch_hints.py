"""Hints where the cache is made: logged once, by the first rank, and never in the way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import sglang.srt.mem_cache.mamba_radix.launch_facts as launch_facts
import sglang.srt.mem_cache.mamba_radix.setup as setup
import sglang.srt.plugins.marconi as plugin
from server_harness import tiny_model
from sglang.srt.arg_groups.model_override_base import model_config_of
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.model_executor.cuda_graph_config import Backend
from sglang.srt.plugins import load_plugins
from sglang.srt.runtime_context import get_parallel
from tree_harness import FULL, MAMBA, TreeHarness, server_context

POLICY_3 = ("--marconi-evict-policy", "3")
BFLOAT16 = ("--mamba-ssm-dtype", "bfloat16")
HOST_TIER = ("--enable-hierarchical-cache",)
ONE_MEMORY, FLOAT32 = "states and KV have a pool each", "states are float32"
MAKER = "sglang.srt.plugins.marconi"


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    load_plugins()


@pytest.fixture(autouse=True)
def a_platform_of_sglangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that tests run on is not, and SGLang builds no unified pools for others."""
    monkeypatch.setattr(
        "sglang.srt.platforms.interface.reject_out_of_tree_path", lambda platform, subsystem: None
    )


def resolved(*words: str) -> Any:
    from sglang.srt.server_args import prepare_server_args

    args = prepare_server_args(["--model-path", str(tiny_model("qwen3-next")), *words])
    args.resolve_once()
    args.check_server_args()
    return args


def start(args: Any, **ranks: int) -> Any:
    """The cache of a scheduler process, made as SGLang has it made."""
    harness = TreeHarness()
    params = CacheInitParams(
        disable=False,
        req_to_token_pool=harness.requests,
        token_to_kv_pool_allocator=harness.allocator,
        page_size=1,
        tree_components=(FULL, MAMBA),
        tree_core_backend="python",
    )
    context = SimpleNamespace(
        server_args=args, params=params, model_config=model_config_of(args), is_hybrid_ssm=True
    )
    rank = {"tp_rank": 0, "pp_rank": 0, "dp_rank": None, **ranks}

    def make(_context: Any, cache_class: Any = None) -> Any:
        return (cache_class or UnifiedRadixCache)(params)

    with ExitStack() as stack:
        stack.enter_context(get_parallel().override(**rank))
        for reader in (setup, launch_facts):
            stack.enter_context(
                mock.patch.object(reader, "get_memory", lambda: resolving_view(args))
            )
        return plugin.create_unified_radix_cache(make, context)


@pytest.fixture(autouse=True)
def context() -> Iterator[None]:
    with server_context():
        yield


class Listener(logging.Handler):
    """Keeps what is logged; SGLang takes pytest's own handler off when it reads a log level."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def said(*words: str, **ranks: int) -> list[str]:
    """The hints that a start with these flags logs."""
    args, listener = resolved(*words), Listener()
    logger = logging.getLogger(MAKER)
    logger.addHandler(listener)
    try:
        start(args, **ranks)
    finally:
        logger.removeHandler(listener)
    active = [line for line in listener.lines if line.startswith("Marconi is active")]
    assert len(active) == (1 if plugin.config_of(args) is not None else 0)
    return [line for line in listener.lines if "hint" in line]


def test_each_hint_is_logged_once():
    one_memory, float32 = said(*POLICY_3)
    assert one_memory.startswith(f"Marconi hint: {ONE_MEMORY}")
    assert float32.startswith(f"Marconi hint: {FLOAT32}")


@pytest.mark.parametrize("rank", ["tp_rank", "pp_rank", "dp_rank"])
def test_other_ranks_say_nothing(rank):
    assert said(*POLICY_3, **{rank: 1}) == []


def test_nothing_is_logged_where_nothing_is_to_be_said():
    assert said(*POLICY_3, *BFLOAT16, "--enable-unified-memory") == []


def test_without_a_policy_nothing_is_logged_or_looked_at(monkeypatch):
    monkeypatch.setattr(setup, "start_up_hints", mock.Mock(side_effect=AssertionError))
    assert said() == []


def test_a_fault_is_no_hint_and_ends_nothing(monkeypatch):
    broken = mock.Mock(side_effect=RuntimeError)
    monkeypatch.setattr(launch_facts, "could_share_memory", broken)
    assert said(*POLICY_3) == [] and broken.called


def test_a_rank_that_is_not_known_is_no_hint_and_ends_nothing(monkeypatch):
    monkeypatch.setattr(launch_facts, "get_parallel", mock.Mock(side_effect=RuntimeError))
    assert said(*POLICY_3) == []


@pytest.mark.parametrize(
    "words",
    [
        ("--enable-unified-memory",),
        HOST_TIER,
        ("--enable-int8-mamba-checkpoint",),
        ("--speculative-algorithm", "NGRAM"),
        ("--disaggregation-mode", "prefill"),
        # SGLang's own checks refuse these.
        ("--linear-attn-decode-backend", "cutedsl"),
        ("--prefill-attention-backend", "torch_native"),
    ],
    ids=lambda words: words[0],
)
def test_one_memory_is_not_named_where_it_is_refused_or_untried(words):
    plain = (*POLICY_3, "--attention-backend", "triton")
    assert launch_facts.could_share_memory(*facts_of(resolved(*plain)))
    assert not launch_facts.could_share_memory(*facts_of(resolved(*plain, *words)))


def facts_of(args: Any) -> tuple[Any, Any, Any]:
    from sglang.srt.mem_cache.marconi.attach.setup import model_cost

    model_config = model_config_of(args)
    config = plugin.config_of(args)
    assert config is not None
    return args, model_config, model_cost(model_config.hf_config, config)


def test_a_platform_that_builds_no_unified_pools_is_not_told_of_them(monkeypatch):
    def refuse(platform: Any, *, subsystem: str) -> None:
        raise NotImplementedError(subsystem)

    args = resolved(*POLICY_3)
    monkeypatch.setattr("sglang.srt.platforms.interface.reject_out_of_tree_path", refuse)
    assert not launch_facts.could_share_memory(*facts_of(args))


def test_asking_sglang_leaves_the_launch_as_it_is():
    args = resolved(*POLICY_3, "--attention-backend", "triton")
    # SGLang turns these graphs off where it resolves one memory for such a backend.
    graphs = resolving_view(args).cuda_graph_config.prefill
    graphs.backend = Backend.FULL
    before = list(args._resolved_overrides), args.resolved_dict()
    assert launch_facts.could_share_memory(*facts_of(args))
    assert (list(args._resolved_overrides), args.resolved_dict()) == before
    assert graphs.backend is Backend.FULL


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((*HOST_TIER,), None),
        ((*HOST_TIER, "--hicache-ratio", "0.5"), "0.50 bytes"),
        # The pools of the harness are far below a gigabyte.
        ((*HOST_TIER, "--hicache-ratio", "0.5", "--hicache-size", "1"), None),
    ],
)
def test_a_host_tier_below_the_device_is_named(words, expected):
    lines = said(*POLICY_3, *BFLOAT16, *words)
    assert ([expected in line for line in lines] == [True]) if expected else lines == []


def test_a_size_of_the_host_tier_is_held_against_the_pools():
    harness = TreeHarness()
    params = SimpleNamespace(
        req_to_token_pool=harness.requests, token_to_kv_pool_allocator=harness.allocator
    )
    pools = harness.requests, harness.allocator.get_kvcache()
    each = launch_facts.pool_bytes(*pools)
    device = harness.kv_tokens * each.kv_bytes_per_token + harness.state_slots * each.state_bytes
    memory = SimpleNamespace(
        enable_hierarchical_cache=True,
        hicache_host_memory_mode="cache",
        hicache_size=device / 4 / 1e9,
        hicache_ratio=2.0,
    )
    assert launch_facts._host_share(memory, params) == pytest.approx(0.25)
    assert launch_facts._host_share(memory, None) is None
    memory.hicache_host_memory_mode = "buffer_only"
    assert launch_facts._host_share(memory, params) is None


def test_bytes_of_states_are_those_of_the_cost_model():
    (line,) = [line for line in said(*POLICY_3) if FLOAT32 in line]
    _, _, cost = facts_of(resolved(*POLICY_3))
    assert cost.layers is not None
    halves = cost.layers.temporal_elements * 2
    conv = cost.layers.conv_elements * 2
    assert f"{(2 * halves + conv) / 2**20:.3g} MiB each" in line
    assert f"{(halves + conv) / 2**20:.3g} MiB, so" in line


@pytest.mark.parametrize(
    "words",
    [BFLOAT16, ("--enable-int8-mamba-checkpoint",), ("--linear-attn-decode-backend", "cutedsl")],
    ids=lambda words: words[0],
)
def test_states_that_are_smaller_or_may_not_be_are_not_named(words):
    assert not [line for line in said(*POLICY_3, *words) if FLOAT32 in line]
