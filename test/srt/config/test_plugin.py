"""The wiring: flags by every way they can be given, checks before the model loads, self-check."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from importlib import metadata

import pytest
import sglang.srt.plugins.marconi as plugin
from server_harness import tiny_model
from sglang.srt.mem_cache.marconi.config import MarconiConfig, MarconiConfigError
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry


@pytest.fixture(scope="module", autouse=True)
def plugins():
    load_plugins()


@pytest.fixture(scope="module")
def model():
    return str(tiny_model("qwen3-next"))


def parse(*argv: str):
    from sglang.srt.server_args import prepare_server_args

    return prepare_server_args(["--model-path", "none", *argv])


# -- giving the flags


def test_flags_reach_server_args_and_survive_pickling():
    args = parse("--marconi-evict-policy", "2", "--marconi-eff-weight", "0.7")
    expected = MarconiConfig(2, 0.7)
    assert plugin.config_of(args) == expected
    assert plugin.config_of(pickle.loads(pickle.dumps(args))) == expected, "to the schedulers"


def test_without_a_flag_server_args_are_stock():
    args = parse()
    assert plugin.config_of(args) is None
    assert plugin.OPTIONS_ATTRIBUTE not in args.__dict__
    assert not any("marconi" in name for name in args.resolved_dict())


def test_resolved_options_are_shown():
    shown = parse("--marconi-evict-policy", "1").resolved_dict()
    assert shown["marconi_evict_policy"] == 1 and shown["marconi_eff_weight"] == 0.5


def test_flags_from_a_config_file(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("marconi-evict-policy: 2\nmarconi-eff-weight: 0.25\n")
    assert plugin.config_of(parse("--config", str(path))) == MarconiConfig(2, 0.25)


def test_engine_keywords():
    from sglang.srt.entrypoints.engine import Engine

    load_plugins()
    args = Engine.server_args_class(model_path="none", marconi_evict_policy=2)
    assert plugin.config_of(args) == MarconiConfig(2)
    assert plugin.config_of(Engine.server_args_class(model_path="none")) is None
    with pytest.raises(MarconiConfigError, match=r"--marconi-eff-weight is -1"):
        Engine.server_args_class(model_path="none", marconi_evict_policy=2, marconi_eff_weight=-1)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--marconi-evict-policy", "7"], ["--marconi-evict-policy", "'7'", "1, 2"]),
        (
            ["--marconi-evict-policy", "2", "--marconi-eff-weight", "nan"],
            ["--marconi-eff-weight", "'nan'", ">= 0"],
        ),
        (
            ["--marconi-evict-policy", "2", "--marconi-savings", "x"],
            ["--marconi-savings", "'x'", "surviving, parent"],
        ),
    ],
)
def test_a_bad_value_on_the_command_line_is_a_usage_error(argv, words, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(*argv)
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words)


def test_contradicting_flags_are_refused():
    with pytest.raises(MarconiConfigError, match=r"--marconi-eff-weight is 0\.5"):
        parse("--marconi-eff-weight", "0.5")


# -- checks before the model loads


def check(model: str, *argv: str) -> None:
    args = parse("--model-path", model, "--marconi-evict-policy", "2", *argv)
    args.resolve_once()
    args.check_server_args()


def test_a_hybrid_model_passes(model):
    check(model)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--disable-radix-cache"], "--marconi-evict-policy is 2 but --disable-radix-cache is set"),
        (
            ["--marconi-admission", "judicious", "--chunked-prefill-size", "-1"],
            "--marconi-admission is judicious but --chunked-prefill-size is -1",
        ),
        (["--radix-eviction-policy", "lfu"], "--radix-eviction-policy is 'lfu'; allowed is lru"),
        (["--enable-unified-memory"], "is set, which the tuner does not simulate"),
        (
            ["--disaggregation-mode", "decode", "--marconi-eff-weight", "1"],
            "--disaggregation-mode is 'decode', where SGLang keeps no prefix cache; allowed with "
            "it is --disaggregation-decode-enable-radix-cache",
        ),
    ],
)
def test_flags_that_exclude_marconi(model, argv, words):
    with pytest.raises(MarconiConfigError, match=words):
        check(model, *argv)


def test_mlx_excludes_marconi(model, monkeypatch):
    monkeypatch.setenv("SGLANG_USE_MLX", "1")
    args = parse("--model-path", model, "--marconi-evict-policy", "3")
    with pytest.raises(MarconiConfigError, match="SGLANG_USE_MLX is set"):
        plugin.check_server_args(None, args)


def test_unified_memory_goes_with_a_weight_that_is_given(model):
    check(model, "--enable-unified-memory", "--marconi-eff-weight", "0.5")


@pytest.mark.parametrize("mode", [["--enable-unified-memory"], ["--pp-size", "2"]])
def test_auto_goes_with_what_policy_3_goes_with(model, mode):
    with pytest.raises(MarconiConfigError, match="--marconi-eff-weight is auto but"):
        check(model, *mode)
    check(model, *mode, "--marconi-evict-policy", "auto")


def test_another_order_of_kv_goes_with_the_state_pool_alone(model):
    check(model, "--radix-eviction-policy", "lfu", "--marconi-evict-pools", "state")


def test_another_cache_backend_excludes_marconi(model):
    from sglang.srt.mem_cache.registry import (
        get_radix_cache_factory,
        register_radix_cache_backend,
    )

    if get_radix_cache_factory("other") is None:
        register_radix_cache_backend("other", lambda ctx: None)
    with pytest.raises(MarconiConfigError, match=r"--radix-cache-backend is 'other'"):
        check(model, "--radix-cache-backend", "other")


def edited_model(model: str, directory, **changes: object) -> str:
    """The tiny model with another config.json; weights are never read."""
    from pathlib import Path

    for file in Path(model).iterdir():
        if file.name != "config.json":
            (directory / file.name).symlink_to(file)
    config = json.loads((Path(model) / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    return str(directory)


def test_a_model_without_recurrent_state_is_refused(tmp_path, model):
    from pathlib import Path

    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 512,
                "max_position_embeddings": 2048,
                "torch_dtype": "float32",
            }
        )
    )
    for file in Path(model).glob("*token*"):
        (tmp_path / file.name).symlink_to(file)
    with pytest.raises(MarconiConfigError, match=r"LlamaForCausalLM.*no\s+recurrent state"):
        check(str(tmp_path))


def test_an_architecture_without_cost_model_is_refused_by_policy_2_only(model, monkeypatch):
    import sglang.srt.mem_cache.marconi.attach.setup as setup
    from sglang.srt.marconi_utils import UnknownArchitectureError

    def unknown(config):
        raise UnknownArchitectureError("NewHybridForCausalLM")

    monkeypatch.setattr(setup, "cost_from_config", unknown)
    with pytest.raises(MarconiConfigError, match=r"policy is 2 .*NewHybridForCausalLM.*policy 1"):
        check(model)
    args = parse("--model-path", model, "--marconi-evict-policy", "1")
    args.resolve_once()
    args.check_server_args()


# -- self-check


def test_registering_twice_hooks_once(monkeypatch):
    """A patched tree calls it beside the entry point."""
    monkeypatch.setattr(HookRegistry, "_hooks", defaultdict(list))
    plugin.register()
    once = {target: list(hooks) for target, hooks in HookRegistry._hooks.items()}
    plugin.register()
    assert once == HookRegistry._hooks and len(once) == len(plugin.HOOKS)


def test_this_sglang_has_no_problems():
    assert plugin.find_problems() == []
    assert {hook.target for hook in plugin.HOOKS} <= HookRegistry._patched


def test_another_version_is_refused_with_a_flag_and_harmless_without(monkeypatch):
    monkeypatch.setattr(plugin.metadata, "version", lambda name: "0.6.0")
    problems = plugin.find_problems()
    assert problems == ["SGLang is 0.6.0; allowed is 0.5.23"]
    monkeypatch.setattr(plugin, "_problems", problems)
    parse()
    with pytest.raises(MarconiConfigError, match=r"SGLang is 0\.6\.0; allowed is 0\.5\.23"):
        parse("--marconi-evict-policy", "2")


@pytest.mark.parametrize(
    ("target", "parameters", "words"),
    [
        ("sglang.srt.mem_cache.registry.make_cache", (), "is not there"),
        ("sglang.srt.mem_cache.registry.create_tree_cache", ("context",), "expected is"),
    ],
)
def test_a_target_that_moved_or_changed_is_found(target, parameters, words, monkeypatch):
    from sglang.srt.plugins.hook_registry import HookType

    moved = plugin.Hook(target, HookType.AROUND, lambda *_: None, parameters)
    monkeypatch.setattr(plugin, "HOOKS", (*plugin.HOOKS, moved))
    (problem,) = plugin.find_problems()
    assert target in problem and words in problem
    with pytest.raises(MarconiConfigError, match="was not applied"):
        parse("--marconi-evict-policy", "2")


# -- the wheel


def test_the_wheel_adds_files_beside_upstreams_and_replaces_none():
    ours = {str(path) for path in metadata.files("sglang-marconi") or () if path.suffix == ".py"}
    upstream = {str(path) for path in metadata.files("sglang") or ()}
    assert ours and all(path.startswith("sglang/srt/") for path in ours)
    assert not ours & upstream
    assert metadata.requires("sglang-marconi") == ["sglang==0.5.23"]
