"""What the demo would do: servers, memory, workloads and command lines, without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from demonstration import command, workloads
from demonstration.contenders import ONE_MEMORY, PAPER, STOCK, TITLES, VALUE
from demonstration.plan import (
    CPU_FLAGS,
    Plan,
    find_tiny_model,
    model_cost,
    parse_arguments,
    plan_for,
    scale_of,
)
from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateDType, Mamba2StateShape
from sglang.srt.marconi_utils import ModelCost, cost_from_config
from sglang.srt.mem_cache.marconi.costs.known_models import KNOWN_MODELS
from sglang.srt.mem_cache.unified_memory_pool import init_unified_mamba_pools
from sglang.srt.runtime_context import get_parallel

SCRIPT = Path(__file__).resolve().parents[3] / "benchmark/marconi/demo.py"
LARGE = next(config for name, config in KNOWN_MODELS.items() if "Qwen3-Next-80B" in name)
#: The shape of the tiny Qwen3-Next, whose states weigh 310 tokens of KV.
TINY = ModelCost(a=1, b=0, kv_bytes_per_token=256, state_bytes=79_488)


def cpu_plan(*words: str) -> Plan:
    options = parse_arguments(["--models", "m", "--out", "o", *words])
    return plan_for(options, "m/tiny", TINY)


def gpu_plan(*words: str) -> Plan:
    options = parse_arguments(["--model-path", "owner/name", "--out", "o", *words])
    return plan_for(options, "owner/name", cost_from_config(LARGE))


def test_servers_differ_in_marconis_flags_alone():
    flags = cpu_plan("--eff-weight", "0.3").server_flags()
    stock = flags[STOCK]
    assert list(flags) == list(TITLES) and not any("marconi" in flag for flag in stock)
    three = ("--marconi-evict-policy", "3")
    assert flags[PAPER] == (*stock, "--marconi-evict-policy", "2", "--marconi-eff-weight", "0.3")
    assert flags[VALUE] == (*stock, *three)
    assert flags[ONE_MEMORY] == (*stock, *three, "--enable-unified-memory")
    assert cpu_plan().server_flags()[PAPER] == (*stock, "--marconi-evict-policy", "2")


def test_one_memory_has_the_bytes_of_the_others_pools():
    """SGLang sums up the pools that the flags name; one state of it is padding, none on top."""
    plan = cpu_plan()
    for flag, value in (("--max-total-tokens", "26000"), ("--max-mamba-cache-size", "40")):
        for flags in plan.server_flags().values():
            assert flags[flags.index(flag) + 1] == value and flags.count(flag) == 1

    states = Mamba2CacheParams(
        shape=Mamba2StateShape.create(
            tp_world_size=1,
            intermediate_size=64,
            n_groups=1,
            num_heads=2,
            head_dim=32,
            state_size=16,
            conv_kernel=4,
        ),
        layers=[0],
        dtype=Mamba2StateDType(conv=torch.float32, temporal=torch.float32),
    )
    tokens, slots = 500, 10
    with get_parallel().override(attn_dcp_size=1, attn_dcp_rank=0):
        bundle = init_unified_mamba_pools(
            device="cpu",
            kv_cache_dtype=torch.float32,
            head_num=1,
            head_dim=16,
            page_size=1,
            start_layer=0,
            end_layer=2,
            is_draft_worker=False,
            use_mla_backend=False,
            mamba_layer_ids=[0],
            full_attention_layer_ids=[1],
            mamba2_cache_params=states,
            model_context_len=64,
            extra_max_context_len=0,
            max_total_num_tokens=tokens,
            max_mamba_cache_size=slots,
            max_num_reqs=2,
            enable_memory_saver=False,
            enable_mamba_extra_buffer=False,
            enable_mamba_extra_buffer_lazy=False,
            speculative_num_draft_tokens=None,
            disable_overlap_schedule=True,
            need_sort=False,
            lazy_compaction=True,
        )
    kv_bytes = 2 * 16 * 4
    cost = ModelCost(a=1, b=0, kv_bytes_per_token=kv_bytes, state_bytes=states.mamba_cache_per_req)
    sized = cpu_plan("--kv-tokens", str(tokens), "--states", str(slots))
    assert bundle.unified_memory_pool.total_bytes == sized.memory_bytes(cost)


def test_workloads_outgrow_the_cache_by_the_factor_that_is_said():
    plan = cpu_plan()
    assert plan.workloads == ("clients", "shared-prefix")
    assert workloads.outgrown(plan, "clients") == pytest.approx(1.25, abs=0.05)
    assert workloads.outgrown(plan, "shared-prefix") == pytest.approx(1.6, abs=0.05)
    assert "1.2 times the KV pool" in workloads.about(plan, "clients")
    assert "3.0 times the states" in workloads.about(plan, "clients")
    assert plan.shared_prefix.groups == plan.pools.states
    alone = cpu_plan("--workload", "chat")
    assert (alone.pools.kv_tokens, alone.pools.states, alone.eff_weight) == (8192, 24, "0.5")
    assert workloads.outgrown(alone, "chat") > 1.5


def test_a_real_models_workloads_outgrow_it_alike():
    """A state of Qwen3-Next-80B weighs ten times the tokens that the tiny model's does."""
    cost = cost_from_config(LARGE)
    assert scale_of(TINY) == 1 and scale_of(cost) == 10
    plan = gpu_plan()
    assert (plan.pools.kv_tokens, plan.pools.states) == (260_000, 40)
    for name in plan.workloads:
        ours = workloads.outgrown(plan, name)
        assert ours == pytest.approx(workloads.outgrown(cpu_plan(), name), rel=0.05)
    assert plan.chat_scale == 1, "a real model's chats have real lengths"


def test_a_real_model_gets_none_of_the_cpus_flags():
    words = ("--tp", "4", "--kv-tokens", "90000", "--", "--attention-backend", "fa3")
    plan = gpu_plan(*words)
    flags = plan.server_flags()
    assert list(flags) == list(TITLES)
    for name, given in flags.items():
        assert not set(given) & {flag for flag in CPU_FLAGS if flag.startswith("--")}
        assert "cpu" not in " ".join(given)
        assert given[given.index("--tp") + 1] == "4"
        assert given[given.index("--attention-backend") + 1] == "fa3"
        assert given[given.index("--max-total-tokens") + 1] == "90000"
        assert ("--enable-unified-memory" in given) == (name == ONE_MEMORY)
    assert [list(group) for group in command.launches(plan)] == [[name] for name in TITLES]
    assert [list(group) for group in command.launches(cpu_plan())] == [list(TITLES)]


def test_what_was_never_run_is_said():
    assert "NOT RUN ON A GPU" in command.introduction(gpu_plan(), cost_from_config(LARGE))
    assert "NOT RUN ON A GPU" in command.caveats(gpu_plan(), cost_from_config(LARGE))
    assert "GPU by those" not in command.introduction(cpu_plan(), TINY)


def test_help_says_what_was_never_run(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    assert "NOT RUN ON A GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--servers", "policy-3"], "--servers must be stock"),
        (["--servers", "stock"], "and others"),
        (["--rounds", "0"], "--rounds is 0; allowed is 1 or more"),
        (["--workload", "tea"], "invalid choice"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        cpu_plan(*words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("model", ["/no/such/folder", "nothing"])
def test_a_bad_model_path_fails_before_anything_starts(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main(["--model-path", model, "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert f"the model is {model!r}; allowed is a folder with a config.json" in said
    assert not out.exists()


def test_a_name_that_the_hub_does_not_give_fails_before_anything_starts(tmp_path):
    """In a process of its own, for whether the hub may be asked is read at import."""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--model-path", "no/such-model", "--out", out],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "the model is 'no/such-model'; it is no folder" in done.stderr
    assert "Traceback" not in done.stderr and not out.exists()


def test_a_model_without_recurrent_state_is_refused(tmp_path, capsys):
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be compared"):
        model_cost(str(tmp_path), config)
    assert command.main(["--model-path", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "LlamaForCausalLM" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_missing_tiny_model_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="tiny_models"):
        find_tiny_model(tmp_path)


def test_no_server_always_comes_first_or_last():
    order = list(workloads.there_and_back(["a", "b", "c"], 4))
    assert "".join(name for _, name in order) == "abccbabcaacb"
    assert [index for index, _ in order] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
