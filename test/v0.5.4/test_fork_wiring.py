"""The fork's options: fields, flags, keywords, checks; and its modules stand on this base."""

from __future__ import annotations

import importlib
import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from build_fork import PATCHES, REPOSITORY
from series import load_series
from server_harness import tiny_model
from sglang.srt import marconi_wiring
from sglang.srt.marconi_utils import UnknownArchitectureError
from sglang.srt.mem_cache.marconi.attach import setup
from sglang.srt.mem_cache.marconi.config import MarconiConfigError
from sglang.srt.server_args import ServerArgs, prepare_server_args

CPU = ("--device", "cpu", "--attention-backend", "torch_native", "--disable-overlap-schedule")


@pytest.fixture(scope="module")
def model() -> str:
    return str(tiny_model("qwen3-next", "float32"))


def parse(model: str, *arguments: str) -> ServerArgs:
    return prepare_server_args(["--model-path", model, *CPU, *arguments])


def check(model: str, *arguments: str) -> None:
    parse(model, "--marconi-evict-policy", "2", *arguments).check_server_args()


def test_the_environment_has_the_fork():
    assert version("sglang").startswith("0.5.4+marconi.")


def test_every_module_of_the_fork_imports_on_this_base():
    series = load_series(PATCHES / "v0.5.4", REPOSITORY / "python")
    for name in series.modules:
        path = name.removesuffix(".py").removesuffix("/__init__")
        module = importlib.import_module(path.replace("/", "."))
        assert "site-packages" in str(module.__file__)


def test_flags_become_fields(model):
    args = parse(model, "--marconi-evict-policy", "2", "--marconi-eff-weight", "0.25")
    assert (args.marconi_evict_policy, args.marconi_eff_weight) == (2, 0.25)
    assert args.marconi_savings is None
    config = marconi_wiring.config_of(args)
    assert config is not None and config.marconi_savings == "surviving"
    assert {flag.field for flag in marconi_wiring.FLAGS} <= set(ServerArgs.__dataclass_fields__)


def test_keywords_and_a_config_file_do_too(model, tmp_path):
    args = ServerArgs(model_path=model, device="cpu", marconi_evict_policy=2)
    assert marconi_wiring.config_of(args).marconi_evict_policy == 2
    file = tmp_path / "server.yaml"
    file.write_text("marconi-evict-policy: 2\nmarconi-eff-weight: 0.75\n")
    assert parse(model, "--config", str(file)).marconi_eff_weight == 0.75


def test_without_a_flag_nothing_is_configured(model):
    args = parse(model)
    args.check_server_args()
    assert marconi_wiring.config_of(args) is None


def test_the_number_of_states_that_was_asked_for_is_kept(model):
    args = parse(model, "--max-mamba-cache-size", "24")
    args.check_server_args()
    args.max_mamba_cache_size = 49995
    assert marconi_wiring.states_asked(args) == 24
    assert marconi_wiring.states_asked(parse(model)) is None


def test_the_weight_is_a_number_by_default(model, capsys):
    """This release has no tuner, so nothing is left to one."""
    config = marconi_wiring.config_of(parse(model, "--marconi-evict-policy", "2"))
    assert config is not None and config.marconi_eff_weight == 0.5 and not config.tunes
    auto = marconi_wiring.config_of(parse(model, "--marconi-evict-policy", "auto"))
    assert auto is not None and auto.marconi_evict_policy == 3
    with pytest.raises(SystemExit):
        parse(model, "--help")
    printed = " ".join(capsys.readouterr().out.split())
    (described,) = re.findall(r"--marconi-eff-weight WEIGHT (.*?) --marconi", printed)
    assert described.endswith("Default: 0.5.") and "auto" not in described
    assert "--marconi-evict-policy {1,2,3,auto}" in printed and "--marconi-tun" not in printed


@pytest.mark.parametrize(
    ("argument", "allowed"),
    [
        ("--marconi-evict-policy=9", "is '9'; allowed are 1, 2, 3, auto"),
        ("--marconi-eff-weight=-1", "is '-1'; allowed is a finite number >= 0"),
        ("--marconi-eff-weight=auto", "is 'auto'; allowed is a finite number >= 0"),
        ("--marconi-admission=judicious", "is 'judicious'; allowed is sglang"),
    ],
)
def test_a_bad_value_ends_the_parsing(model, argument, allowed, capsys):
    with pytest.raises(SystemExit):
        parse(model, argument)
    message = f"{argument.partition('=')[0]} {allowed}\n"
    assert capsys.readouterr().err.endswith(message)


def test_a_keyword_is_refused_as_a_flag_is(model):
    options = {"marconi_evict_policy": 2, "marconi_eff_weight": "auto"}
    args = ServerArgs(model_path=model, device="cpu", **options)
    with pytest.raises(MarconiConfigError, match=r"^--marconi-eff-weight is 'auto'; allowed "):
        args.check_server_args()


def test_a_weight_without_a_policy_is_refused(model):
    with pytest.raises(MarconiConfigError, match=r"eff-weight is 0\.5 but --marconi-evict-policy"):
        parse(model, "--marconi-eff-weight", "0.5").check_server_args()


@pytest.mark.parametrize("flag", ["--disable-radix-cache", "--enable-lmcache"])
def test_flags_that_contradict_are_refused(model, flag):
    with pytest.raises(MarconiConfigError, match=f"evict-policy is 2 but {flag} is set"):
        check(model, flag)


def test_the_experimental_tree_is_refused(model, monkeypatch):
    monkeypatch.setenv("SGLANG_EXPERIMENTAL_CPP_RADIX_TREE", "1")
    with pytest.raises(MarconiConfigError, match="SGLANG_EXPERIMENTAL_CPP_RADIX_TREE is 1"):
        check(model)


def test_a_model_without_cached_states_is_refused(model, tmp_path):
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
    with pytest.raises(MarconiConfigError, match=r"LlamaForCausalLM.*is no Qwen3-Next"):
        check(str(tmp_path))


def test_unknown_costs_are_refused_by_policy_2_only(model, monkeypatch):
    def unknown(config):
        raise UnknownArchitectureError("NewHybridForCausalLM")

    monkeypatch.setattr(setup, "cost_from_config", unknown)
    with pytest.raises(MarconiConfigError, match=r"policy is 2 .*NewHybridForCausalLM.*policy 1"):
        check(model)
    parse(model, "--marconi-evict-policy", "1").check_server_args()
