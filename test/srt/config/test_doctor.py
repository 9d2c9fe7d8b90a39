"""The doctor says what a launch would do, and exits as it says."""

from __future__ import annotations

import pytest
import sglang.srt.plugins.marconi as plugin
from server_harness import tiny_model
from sglang.srt.mem_cache.mamba_radix.core import slower_core_reason
from sglang.srt.mem_cache.marconi.advice.launch import LaunchFacts, hints
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier
from sglang.srt.plugins.marconi_doctor import main


@pytest.fixture(scope="module")
def model() -> str:
    return str(tiny_model("qwen3-next"))


def examined(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(words)
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_it_says_what_would_be_active(model, capsys):
    status, out, _ = examined(
        capsys, "--model-path", f"{model}/config.json", "--marconi-evict-policy", "3"
    )
    assert status == 0
    assert f"hooks: all {len(plugin.HOOKS)} targets are in place" in out
    assert "policy 3 (value), pools both, admission sglang" in out
    assert "model: Qwen3NextForCausalLM" in out and "tree core: Rust" in out
    assert "MiB a state" in out and "limit:" not in out


def test_states_in_half_the_bytes_weigh_half(model, capsys):
    def tokens(*words: str) -> int:
        _, out, _ = examined(capsys, "--model-path", model, "--marconi-evict-policy", "3", *words)
        return int(out.split("as much as ")[1].split(" tokens")[0].replace(",", ""))

    assert tokens("--kv-cache-dtype", "fp8_e4m3") == pytest.approx(2 * tokens(), rel=0.01)
    full, half = (tokens("--mamba-ssm-dtype", dtype) for dtype in ("float32", "bfloat16"))
    compressed = tokens("--mamba-ssm-dtype", "bfloat16", "--enable-int8-mamba-checkpoint")
    assert full > 1.5 * half and half > 1.3 * compressed, "the window of the convolution stays"


def test_bytes_are_those_of_the_type_that_the_model_runs_in(model, capsys, monkeypatch):
    # As the CPU platform sets it, for good.
    monkeypatch.setenv("SGLANG_MAMBA_CONV_DTYPE", "float32")
    words = ("--model-path", model, "--marconi-evict-policy", "3", "--dtype", "float32")
    _, out, _ = examined(capsys, *words, "--kv-cache-dtype", "bfloat16")
    assert "256 bytes a token of KV" in out
    status, out, _ = examined(capsys, *words)
    # So a server of this model in float32 reads it off its pools: 512 bytes, and a state 85,248.
    assert status == 0 and "512 bytes a token of KV" in out and "as much as 166 tokens" in out


def test_it_says_why_the_slower_core_is_in_charge(model, capsys):
    words = ("--model-path", model, "--marconi-evict-policy", "3", "--enable-session-radix-cache")
    status, out, _ = examined(capsys, *words)
    core = "tree core: Python, which is slower: --enable-session-radix-cache is set"
    assert status == 0 and core in out


@pytest.mark.parametrize(
    ("tier", "shared", "core"),
    [
        (None, True, None),
        (LowerTier.HOST, False, None),
        (LowerTier.HOST, True, "there is a host tier below one memory for both"),
        (LowerTier.LINKER, False, "below the device is an external linker"),
        (LowerTier.BUFFER, False, "below the device is a buffer before storage"),
    ],
)
def test_what_lies_below_the_device_decides_the_core(tier, shared, core):
    assert slower_core_reason(lower_tier=tier, shared_memory=shared) == core


@pytest.mark.parametrize(
    "words",
    [
        ["--marconi-admission", "judicious"],
        ["--mamba-max-states-per-path", "2"],
        ["--enable-unified-memory"],
        ["--enable-hierarchical-cache"],
    ],
)
def test_it_says_that_the_rust_core_is_in_charge(model, capsys, words):
    status, out, _ = examined(capsys, "--model-path", model, "--marconi-evict-policy", "3", *words)
    assert status == 0 and "tree core: Rust" in out


@pytest.mark.parametrize(
    ("words", "is_said"),
    [
        (["3"], False),
        (["1"], True),
        (["3", "--marconi-evict-pools", "state"], True),
        (["3", "--enable-session-radix-cache"], True),
    ],
)
def test_it_says_whose_order_the_host_forgets_in(model, capsys, words, is_said):
    hosted = ["--enable-hierarchical-cache", "--marconi-evict-policy", *words]
    status, out, _ = examined(capsys, "--model-path", model, *hosted)
    assert status == 0
    assert ("limit: the host forgets in SGLang's own order" in out) is is_said


def test_a_launch_that_is_refused_is_refused_here(model, capsys):
    status, _, err = examined(
        capsys, "--model-path", model, "--marconi-evict-policy", "3", "--disable-radix-cache"
    )
    assert status == 1 and "refused: --marconi-evict-policy is 3 but --disable-radix-cache" in err


def test_without_a_flag_it_is_stock(model, capsys):
    status, out, _ = examined(capsys, "--model-path", model)
    assert status == 0 and "exactly stock" in out


def test_flags_that_cannot_be_read_exit_with_two(model, capsys):
    status, _, err = examined(capsys, "--model-path", model, "--marconi-evict-policy", "7")
    assert status == 2 and "--marconi-evict-policy is '7'; allowed are 1, 2, 3, auto" in err


def test_another_release_is_named(model, capsys, monkeypatch):
    monkeypatch.setattr(plugin, "SUPPORTED_SGLANG", "0.5.99")
    status, _, err = examined(capsys, "--model-path", model, "--marconi-evict-policy", "3")
    assert status == 1 and "allowed is 0.5.99" in err


def test_it_gives_the_hints_that_the_start_up_logs(model, capsys):
    words = ("--model-path", model, "--marconi-evict-policy", "3")
    tier = ("--enable-hierarchical-cache", "--hicache-ratio", "0.5")
    _, out, _ = examined(capsys, *words)
    assert "hint: states are float32" in out and "bytes for each byte" not in out
    (hint,) = hints(LaunchFacts(policy=3, orders_kv=True, host_share=0.5))
    status, out, _ = examined(capsys, *words, *tier, "--mamba-ssm-dtype", "bfloat16")
    assert status == 0
    assert [line for line in out.splitlines() if "hint" in line] == [f"hint: {hint}"]
