"""The costs are what their formulas say: exact, additive, monotone, and upstream's bytes."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt import marconi_utils
from sglang.srt.marconi_utils import (
    PAPER_7B,
    PAPER_7B_NAME,
    MissingFieldError,
    ModelCost,
    SeedCost,
    UnknownArchitectureError,
    cost_by_name,
    cost_from_config,
    get_attn_flops,
    get_kvs_size,
    get_mamba1_flops,
    get_mamba_state_size,
    get_mlp_flops,
    known_model_names,
    pool_bytes,
)
from sglang.srt.mem_cache.marconi.costs import layers
from sglang.srt.mem_cache.marconi.costs.architectures import BUILDERS, MODEL_TYPES
from sglang.srt.mem_cache.marconi.costs.families.shared import UnknownLayerError
from sglang.srt.mem_cache.marconi.costs.known_models import KNOWN_MODELS
from sglang.srt.mem_cache.marconi.costs.layers import LayerCost, ScoreTerm
from sglang.srt.mem_cache.marconi.costs.model import attended_pairs, model_cost
from sglang.srt.mem_cache.marconi.costs.pools import kv_bytes_per_token, state_bytes
from sglang.srt.mem_cache.marconi.costs.state_types import state_types

LENGTHS = st.integers(min_value=0, max_value=1_000_000)
ATTENTION = st.sampled_from(["square", "causal"])


def upstream_source(*parts: str) -> ast.Module:
    import sglang

    path = Path(sglang.__file__).parent / "srt" / Path(*parts)
    return ast.parse(path.read_text())


# --- the paper's own formulas ------------------------------------------------------------------


def test_seed_formulas_at_the_papers_sizes() -> None:
    d, n = 4096, 128
    assert get_attn_flops(1000, d) == 8 * 1000 * d * d + 4 * 1000 * 1000 * d
    assert get_mlp_flops(1000, d) == 16 * 1000 * d * d
    assert get_mamba1_flops(1000, d, n) == 12_000 * d * d + 16_000 * d * n + 10_000 * d
    assert get_kvs_size(1, d) == 16_384
    assert get_mamba_state_size(d, n) == 1_116_160
    assert PAPER_7B.state_memory() == 26_787_840
    assert PAPER_7B.total_memory(1) - PAPER_7B.total_memory(0) == 65_536


@pytest.mark.parametrize(
    "value",
    [get_attn_flops(3, 5), get_mlp_flops(3, 5), get_mamba1_flops(3, 5, 2), get_kvs_size(3, 5)],
)
def test_seed_formulas_are_exact_ints(value: object) -> None:
    assert type(value) is int


def test_mlp_savings_subtract_the_parents_mlp_flops() -> None:
    cost = SeedCost(num_ssm_layers=0, num_attn_layers=0, num_mlp_layers=28, d=4096, n=128)
    assert cost.flops_savings(20_000, 20_001) == 28 * get_mlp_flops(1, 4096)
    published = 28 * (get_mlp_flops(20_001, 4096) - get_attn_flops(20_000, 4096))
    assert published < 0 < cost.flops_savings(20_000, 20_001)


def test_savings_below_the_root_are_the_whole_prefix() -> None:
    expected = 24 * get_mamba1_flops(500, 4096, 128)
    expected += 4 * get_attn_flops(500, 4096) + 28 * get_mlp_flops(500, 4096)
    assert PAPER_7B.flops_savings(0, 500) == expected


@given(parent=LENGTHS, segment=LENGTHS)
def test_seed_cost_as_model_cost_agrees_everywhere(parent: int, segment: int) -> None:
    exact = PAPER_7B.as_model_cost()
    total = parent + segment
    assert exact.flops(parent, total) == PAPER_7B.flops_savings(parent, total)
    assert exact.bytes(total) == PAPER_7B.total_memory(total)


def test_a_parent_longer_than_its_child_is_refused() -> None:
    with pytest.raises(ValueError, match="no prefix"):
        PAPER_7B.flops_savings(11, 10)


# --- the exact model ----------------------------------------------------------------------------


def some_cost(window: int | None, attention: Any) -> ModelCost:
    scores = (ScoreTerm(12), ScoreTerm(8, window)) if window else (ScoreTerm(12),)
    return model_cost(
        LayerCost(matmul=100, conv=7, scan=11, scores=scores, kv_elements=3, temporal_elements=5),
        kv_dtype_bytes=2,
        temporal_dtype_bytes=4,
        conv_dtype_bytes=2,
        attention=attention,
    )


@given(cut=LENGTHS, rest=LENGTHS, window=st.integers(1, 5000) | st.none(), attention=ATTENTION)
def test_flops_are_additive_and_monotone(
    cut: int, rest: int, window: int | None, attention: str
) -> None:
    cost = some_cost(window, attention)
    end = cut + rest
    assert cost.flops(0, cut) + cost.flops(cut, end) == cost.flops(0, end) == cost.flops(end)
    assert cost.flops(cut, end) >= 118 * rest
    assert cost.flops(cut, end + 1) > cost.flops(cut, end)


@given(tokens=st.integers(0, 300), window=st.integers(1, 80) | st.none(), attention=ATTENTION)
def test_pairs_are_what_counting_each_query_gives(
    tokens: int, window: int | None, attention: Any
) -> None:
    keys = [min(position, window or position) for position in range(1, tokens + 1)]
    counted = sum(keys) if attention == "causal" else sum(2 * k - 1 for k in keys)
    assert attended_pairs(tokens, window, attention) == counted


@given(tokens=LENGTHS)
def test_without_windows_it_is_a_parabola(tokens: int) -> None:
    square, causal = some_cost(None, "square"), some_cost(None, "causal")
    assert square.flops(tokens) == square.a * tokens + square.b * tokens**2
    assert causal.flops(tokens) == 118 * tokens + 12 * (tokens * (tokens + 1) // 2)


def test_a_range_backwards_is_refused() -> None:
    with pytest.raises(ValueError, match="not a range"):
        some_cost(None, "square").flops(3, 2)


def test_unknown_attention_count_is_refused() -> None:
    with pytest.raises(ValueError, match="'square' or 'causal'"):
        some_cost(None, "triangle")


def test_pool_bytes_replace_bytes_and_nothing_else() -> None:
    cost = some_cost(16, "square")
    served = cost.with_pool_bytes(kv_bytes_per_token=640, state_bytes=9000)
    assert (served.kv_bytes_per_token, served.state_bytes) == (640, 9000)
    assert served.bytes(10, states=2) == 6400 + 18_000
    assert served.flops(3, 400) == cost.flops(3, 400)
    assert "640 B KV/token" in served.describe()
    assert "\n" not in served.describe()


def test_plain_attention_and_mlp_are_the_papers() -> None:
    d, length = 64, 10
    attention = layers.attention(d, heads=4, kv_heads=4, head_dim=16)
    assert attention.matmul * length + attention.scores[0].flops_per_pair * length**2 == (
        get_attn_flops(length, d)
    )
    assert layers.mlp(d, 4 * d, gated=False).matmul * length == get_mlp_flops(length, d)


# --- recurrences, counted by doing them ---------------------------------------------------------


class Counted:
    """A number that counts what is done with it."""

    operations = 0

    def __add__(self, other: object) -> Counted:
        Counted.operations += 1
        return Counted()

    __sub__ = __mul__ = __add__


def operations_of(step: Any, *sizes: int) -> int:
    Counted.operations = 0
    step(*sizes)
    return Counted.operations


def vector(size: int) -> list[Counted]:
    return [Counted() for _ in range(size)]


def matrix(rows: int, columns: int) -> list[list[Counted]]:
    return [vector(columns) for _ in range(rows)]


def accumulate(start: Counted, terms: list[Counted]) -> Counted:
    for term in terms:
        start = start + term
    return start


def dot(left: list[Counted], right: list[Counted]) -> Counted:
    """A product sum as hardware does it: one multiply-add, two operations, for each term."""
    return accumulate(Counted(), [a * b for a, b in zip(left, right, strict=True)])


def delta_rule_step(key_dim: int, value_dim: int) -> None:
    state, q, k, v = matrix(value_dim, key_dim), vector(key_dim), vector(key_dim), vector(value_dim)
    decay, strength = vector(key_dim), Counted()
    state = [[s * g for s, g in zip(row, decay, strict=True)] for row in state]
    error = [strength * (v[i] - dot(row, k)) for i, row in enumerate(state)]
    state = [
        [s + e * k_j for s, k_j in zip(row, k, strict=True)]
        for row, e in zip(state, error, strict=True)
    ]
    for row in state:
        dot(row, q)


def linear_attention_step(key_dim: int, value_dim: int) -> None:
    state, q, k, v = matrix(value_dim, key_dim), vector(key_dim), vector(key_dim), vector(value_dim)
    decay = Counted()
    state = [
        [decay * s + v_i * k_j for s, k_j in zip(row, k, strict=True)]
        for row, v_i in zip(state, v, strict=True)
    ]
    for row in state:
        dot(row, q)


def selective_scan_step(inner: int, state_dim: int) -> None:
    read, write = vector(state_dim), vector(state_dim)
    for _ in range(inner):
        x, dt, skip, rates, state = (
            Counted(),
            Counted(),
            Counted(),
            vector(state_dim),
            vector(state_dim),
        )
        step = dt * x
        decays = [dt * rate for rate in rates]
        state = [decay * s + step * b for decay, s, b in zip(decays, state, write, strict=True)]
        dot(state, read) + skip * x


def state_space_dual_step(inner: int, heads: int, state_dim: int) -> None:
    read, write = vector(state_dim), vector(state_dim)
    for _ in range(heads):
        dt, rate, skip = Counted(), Counted(), Counted()
        decay = dt * rate
        for _ in range(inner // heads):
            x, state = Counted(), vector(state_dim)
            step = dt * x
            state = [decay * s + step * b for s, b in zip(state, write, strict=True)]
            dot(state, read) + skip * x


@given(key=st.integers(1, 7), value=st.integers(1, 7))
def test_delta_rule_is_counted_as_it_runs(key: int, value: int) -> None:
    assert layers.delta_rule_flops(key, value) == operations_of(delta_rule_step, key, value)


@given(key=st.integers(1, 7), value=st.integers(1, 7))
def test_linear_attention_is_counted_as_it_runs(key: int, value: int) -> None:
    counted = operations_of(linear_attention_step, key, value)
    assert layers.linear_attention_flops(key, value) == counted


@given(inner=st.integers(1, 7), state=st.integers(1, 7))
def test_selective_scan_is_counted_as_it_runs(inner: int, state: int) -> None:
    counted = operations_of(selective_scan_step, inner, state)
    assert layers.selective_scan_flops(inner, state) == counted


@given(heads=st.integers(1, 4), width=st.integers(1, 5), state=st.integers(1, 7))
def test_state_space_dual_is_counted_as_it_runs(heads: int, width: int, state: int) -> None:
    counted = operations_of(state_space_dual_step, heads * width, heads, state)
    assert layers.state_space_dual_flops(heads * width, heads, state) == counted


# --- which architectures ------------------------------------------------------------------------


def upstream_mamba_radix_architectures() -> set[str]:
    """Every architecture that upstream names when it turns its mamba radix cache on."""
    named: set[str] = {"GraniteMoeHybridForCausalLM"}
    for node in ast.walk(upstream_source("arg_groups", "overrides.py")):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in (
            "_MAMBA_RADIX_CACHE_ARCHS",
            "_MAMBA_EXTRA_BUFFER_ARCHS",
        ):
            named |= {str(c.value) for c in ast.walk(node.value) if isinstance(c, ast.Constant)}
    importlib.import_module("sglang.srt.configs")
    registry = importlib.import_module("sglang.srt.configs.linear_attn_model_registry")
    for spec in registry._LINEAR_ATTN_MODEL_REGISTRY:
        named |= set(spec.arch_names)
    # Draft models predict a token ahead; their layers are no part of a cached prefix.
    return {name for name in named if not name.endswith(("NextN", "MTP"))}


def test_every_architecture_of_the_mamba_radix_cache_has_a_builder() -> None:
    upstream = upstream_mamba_radix_architectures()
    assert len(upstream) > 25
    assert upstream <= set(BUILDERS)


def test_every_config_class_with_recurrent_state_has_a_builder() -> None:
    configs = importlib.import_module("sglang.srt.configs")
    tested = {
        node.id
        for node in ast.walk(upstream_source("configs", "hybrid_arch.py"))
        if isinstance(node, ast.Name) and node.id.endswith(("Config", "V2_Config"))
    } - {"ModelConfig"}
    assert len(tested) > 18
    model_types = {getattr(configs, name).model_type for name in tested} | {"glm5_next"}
    assert model_types <= set(MODEL_TYPES)


def test_no_builder_is_for_an_architecture_that_upstream_lacks() -> None:
    import sglang

    models = Path(sglang.__file__).parent / "srt" / "models"
    classes = {
        line.split("(")[0].split(":")[0].removeprefix("class ").strip()
        for path in models.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("class ")
    }
    assert set(BUILDERS) <= classes


def test_an_unknown_architecture_says_what_to_do() -> None:
    with pytest.raises(UnknownArchitectureError) as caught:
        cost_from_config({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert caught.value.architecture == "LlamaForCausalLM"
    for part in ("'LlamaForCausalLM'", "Qwen3NextForCausalLM", "BUILDERS", "policy 1"):
        assert part in message


def test_a_missing_field_and_an_unknown_layer_are_named() -> None:
    config = dict(KNOWN_MODELS["Qwen/Qwen3.5-27B"])
    del config["linear_key_head_dim"]
    with pytest.raises(MissingFieldError, match="linear_key_head_dim"):
        cost_from_config(config)
    with pytest.raises(UnknownLayerError, match="'moonshine'"):
        cost_from_config({**KNOWN_MODELS["Qwen/Qwen3.5-27B"], "layer_types": ["moonshine"]})


# --- published models ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", known_model_names())
def test_known_models_are_priced(name: str) -> None:
    cost = cost_by_name(name)
    assert cost.a > 0 and cost.b > 0 and cost.kv_bytes_per_token > 0 and cost.state_bytes > 0
    assert cost_by_name(name.rpartition("/")[2].upper()) == cost


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="marconi-7b"):
        cost_by_name("gpt-2")


@pytest.mark.parametrize(
    ("name", "active_billions"),
    [
        # Published count of active parameters, less embeddings and LM head (vocabulary x width).
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 3.9 - 2 * 151_936 * 2048 / 1e9),
        ("Qwen/Qwen3.5-27B", 26.9 - 2 * 248_320 * 5120 / 1e9),
        ("nvidia/Nemotron-H-8B-Base-8K", 8.10 - 2 * 131_072 * 4096 / 1e9),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 3.58 - 2 * 131_072 * 2688 / 1e9),
        ("tiiuae/Falcon-H1-1.5B-Instruct", 1.55 - 2 * 65_537 * 2048 / 1e9),
        ("ibm-granite/granite-4.0-h-micro", 3.19 - 100_352 * 2048 / 1e9),
    ],
)
def test_known_models_have_their_published_size(name: str, active_billions: float) -> None:
    cost = cost_by_name(name)
    assert cost.layers is not None
    assert cost.layers.matmul / 2e9 == pytest.approx(active_billions, rel=0.05)


def test_the_papers_model_uses_the_papers_formulas() -> None:
    assert cost_by_name(PAPER_7B_NAME) == PAPER_7B.as_model_cost(PAPER_7B_NAME)


def test_wrappers_are_opened_and_dense_and_moe_told_apart() -> None:
    moe = KNOWN_MODELS["Qwen/Qwen3.5-35B-A3B"]
    plain = cost_from_config(moe)
    wrapped = cost_from_config(
        {"architectures": ["MiniCPMV4_6ForConditionalGeneration"], "text_config": moe}
    )
    assert wrapped.flops(1234) == plain.flops(1234)
    inherited = {**KNOWN_MODELS["Qwen/Qwen3.5-27B"], "num_experts": 512}
    assert cost_from_config(inherited).a == cost_by_name("Qwen/Qwen3.5-27B").a
    nemotron = KNOWN_MODELS["nvidia/Nemotron-H-8B-Base-8K"]
    vision = {"architectures": ["NemotronH_Nano_VL_V2"], "llm_config": nemotron}
    assert cost_from_config(vision).b == cost_from_config(nemotron).b


# --- bytes --------------------------------------------------------------------------------------


def upstream_configs() -> dict[str, Any]:
    """Config objects of upstream's own classes, with sizes that no two fields share."""
    from sglang.srt.configs import (
        BailingHybridConfig,
        FalconH1Config,
        FalconMambaConfig,
        GraniteMoeHybridConfig,
        InklingModelConfig,
        JetNemotronConfig,
        KimiLinearConfig,
        Lfm2Config,
        Lfm2MoeConfig,
        Mamba2Config,
        MambaConfig,
        MiniCPMHybridConfig,
        NemotronHConfig,
        Qwen3NextConfig,
        ZayaConfig,
    )
    from sglang.srt.configs.gigachat35 import GigaChat35Config
    from sglang.srt.configs.glm5_next import Glm5NextConfig
    from sglang.srt.configs.qwen3_5 import Qwen3_5Config, Qwen3_5MoeConfig

    kda = {
        "kda_layers": [1, 2, 3],
        "full_attn_layers": [4],
        "num_heads": 8,
        "head_dim": 32,
        "short_conv_kernel_size": 4,
    }
    mla = {
        "kv_lora_rank": 48,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
    }
    moe = {"num_experts": 8, "num_experts_per_token": 2, "moe_intermediate_size": 40}
    jet = JetNemotronConfig()
    jet.architectures, jet.hidden_size, jet.intermediate_size = ["JetNemotronForCausalLM"], 96, 80
    jet.num_attention_heads, jet.num_key_value_heads = 8, 4
    jet.layer_types = ["jet", "attn", "swa", "jet"]
    jet.efficient_attention_config = {
        "swa": {"window_size": 64},
        "jet": {
            "mode": "chunk",
            "expand_v": 2.0,
            "num_heads": 8,
            "head_dim": 12,
            "norm_eps": "1e-5",
            "conv_size": 4,
            "dconv_generator_reduction": 8,
            "dconv_implementation": "triton",
        },
    }
    return {
        "qwen3_next": Qwen3NextConfig(full_attention_interval=4),
        "qwen3_5": Qwen3_5Config(text_config={"full_attention_interval": 4}),
        "qwen3_5_moe": Qwen3_5MoeConfig(text_config={"full_attention_interval": 4}),
        "gigachat": GigaChat35Config(full_attention_layers=[3, 7, 11]),
        "jet": jet,
        "kimi": KimiLinearConfig(num_hidden_layers=4, linear_attn_config=kda, **mla, **moe),
        "glm": Glm5NextConfig(text_config={}),
        "bailing kda": BailingHybridConfig(short_conv_kernel_size=4, layer_group_size=5),
        "bailing lightning": BailingHybridConfig(layer_group_size=5),
        "minicpm": MiniCPMHybridConfig(
            num_key_value_heads=32, mixer_types=["minicpm4", "lightning", "lightning", "lightning"]
        ),
        "falcon": FalconH1Config(mamba_d_ssm=2048, mamba_n_heads=32, mamba_n_groups=1),
        "nemotron": NemotronHConfig(n_groups=8),
        "granite": GraniteMoeHybridConfig(),
        # The field is upstream's; transformers 5.19 has dropped it from its own class.
        "mamba2": Mamba2Config(intermediate_size=8192),
        "mamba": MambaConfig(),
        "falcon mamba": FalconMambaConfig(),
        "lfm2": Lfm2Config(layer_types=["conv", "full_attention"] * 16),
        "lfm2 moe": Lfm2MoeConfig(layer_types=["conv", "full_attention"] * 16),
        "zaya": ZayaConfig(),
        "inkling": InklingModelConfig(
            local_layer_ids=[0, 1], swa_num_key_value_heads=8, n_routed_experts=4
        ),
    }


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes upstream's configs believe in a tensor-parallel size."""
    # What an earlier test's server arguments chose for its model holds for the whole process.
    monkeypatch.delenv("SGLANG_MAMBA_CONV_DTYPE", raising=False)

    def of(tp_size: int) -> None:
        parallel = SimpleNamespace(attn_tp_size=tp_size, tp_size=tp_size)
        executed = SimpleNamespace(comm=SimpleNamespace(enable_scattered_sconv=False))
        fakes = {
            "get_parallel": lambda: parallel,
            "get_exec": lambda: executed,
            "linear_attn_tp_size": lambda: tp_size,
        }
        for module in [m for name, m in sys.modules.items() if name.startswith("sglang.srt.")]:
            wanted = module.__name__.startswith("sglang.srt.configs.")
            for name, fake in fakes.items() if module else ():
                if (wanted or module.__name__ == "sglang.srt.runtime_context") and hasattr(
                    module, name
                ):
                    monkeypatch.setattr(module, name, fake)

    return of


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_state_bytes_are_those_of_upstreams_configs(tp_size: int, shards: Any) -> None:
    configs = upstream_configs()
    shards(tp_size)
    ours, theirs = {}, {}
    for name, config in configs.items():
        text = getattr(config, "text_config", None) or config
        ours[name] = cost_from_config(config, tp_size=tp_size).state_bytes
        theirs[name] = text.mamba2_cache_params.mamba_cache_per_req
    assert ours == theirs


@pytest.mark.parametrize("tp_size", [1, 2])
def test_compressed_states_weigh_what_upstreams_pool_says(tp_size: int, shards: Any) -> None:
    from sglang.srt.mem_cache.mamba_checkpoint_pool import MambaCheckpointPool

    configs = upstream_configs()
    shards(tp_size)
    without = set()
    for name, config in configs.items():
        params = (getattr(config, "text_config", None) or config).mamba2_cache_params
        cost = cost_from_config(config, tp_size=tp_size)
        heads, values, keys = params.shape.temporal
        types = state_types(cost)
        if not heads * values * keys:
            assert types == ()
            without.add(name)
            continue
        # Upstream keeps one slot more than it is asked for.
        pool = MambaCheckpointPool.estimate_mem_usage_bytes(
            num_layers=len(params.layers),
            num_slots=0,
            num_heads=heads,
            head_v_dim=values,
            head_k_dim=keys,
            conv_shapes=list(params.shape.conv),
            conv_dtype=params.dtype.conv,
            temporal_dtype=params.dtype.temporal,
        )
        by_name = {kind.name: kind.bytes for kind in types}
        assert by_name["int8 checkpoint"] == pool["total"], name
        assert by_name[str(params.dtype.temporal).removeprefix("torch.")] == cost.state_bytes, name
    assert without == {"lfm2", "lfm2 moe", "zaya", "inkling"}


def test_layers_are_those_of_upstreams_configs(shards: Any) -> None:
    shards(1)
    for name, config in upstream_configs().items():
        text = getattr(config, "text_config", None) or config
        cost = cost_from_config(config)
        attention_layers = len(list(text.full_attention_layer_ids))
        assert (cost.kv_bytes_per_token > 0) == (attention_layers > 0), name
        if attention_layers:
            assert cost.kv_bytes_per_token % attention_layers == 0 or name == "inkling", name


def test_kv_heads_are_sharded_until_each_shard_has_one() -> None:
    per_token = [
        cost_by_name("Qwen/Qwen3.5-27B", tp_size=tp).kv_bytes_per_token for tp in (1, 4, 8)
    ]
    assert per_token == [65_536, 16_384, 16_384]
    latent = [cost_by_name("Kimi-Linear-48B-A3B-Instruct", tp_size=tp) for tp in (1, 4)]
    assert latent[0].kv_bytes_per_token == latent[1].kv_bytes_per_token == 7 * (512 + 64) * 2
    assert latent[0].flops(100) == latent[1].flops(100)


def test_state_dtype_comes_from_the_config() -> None:
    config = KNOWN_MODELS["Qwen/Qwen3.5-27B"]
    full = cost_from_config(config).state_bytes
    half = cost_from_config({**config, "mamba_ssm_dtype": "bfloat16"}).state_bytes
    temporal = 48 * 48 * 128 * 128
    assert full - half == 2 * temporal
    assert cost_from_config(config, temporal_dtype_bytes=2).state_bytes == half
    assert cost_by_name("Qwen/Qwen3.5-27B", kv_dtype_bytes=1).kv_bytes_per_token == 32_768


def test_bytes_are_read_off_real_pools(shards: Any) -> None:
    import torch
    from sglang.srt.configs import Qwen3NextConfig
    from sglang.srt.mem_cache.mamba_checkpoint_pool import MambaCheckpointPool
    from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, MambaPool

    shards(2)
    config = Qwen3NextConfig(num_hidden_layers=4, full_attention_interval=4)
    params = config.mamba2_cache_params
    states = MambaPool(
        size=3,
        spec_state_size=0,
        cache_params=params,
        mamba_layer_ids=params.layers,
        device="cpu",
    )
    common = {"size": 20, "dtype": torch.bfloat16, "page_size": 1, "device": "cpu"}
    kv = HybridLinearKVPool(
        head_num=1, head_dim=256, full_attention_layer_ids=[3], mamba_pool=states, **common
    )
    cost = cost_from_config(config, tp_size=2)
    read = pool_bytes(SimpleNamespace(mamba_pool=states), kv)
    assert read == (cost.kv_bytes_per_token, cost.state_bytes)
    assert pool_bytes(states, kv.full_kv_pool) == read
    assert cost.with_pool_bytes(*read) == cost

    compressed = MambaCheckpointPool(
        num_layers=len(params.layers),
        num_slots=6,
        num_heads=params.shape.temporal[0],
        head_v_dim=params.shape.temporal[1],
        head_k_dim=params.shape.temporal[2],
        conv_shapes=list(params.shape.conv),
        conv_dtype=params.dtype.conv,
        temporal_dtype=params.dtype.temporal,
        device="cpu",
    )
    cached = state_bytes(SimpleNamespace(mamba_pool=states, mamba_ckpt_pool=compressed))
    slots = compressed.num_slots + 1
    assert cached == compressed.mem_usage_bytes() // slots
    assert cached < read.state_bytes / 2, "the states of the pool are float32"

    latent = HybridLinearKVPool(
        head_num=1,
        head_dim=576,
        full_attention_layer_ids=[3],
        mamba_pool=states,
        use_mla=True,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        **common,
    )
    assert pool_bytes(states, latent).kv_bytes_per_token == (512 + 64) * 2


def test_bytes_are_read_off_anything_shaped_like_a_pool() -> None:
    inner = SimpleNamespace(size=7, page_size=1, get_kv_size_bytes=lambda: (800, 800))
    window = SimpleNamespace(size=3, page_size=1, get_kv_size_bytes=lambda: 400)
    with pytest.raises(TypeError, match="no recurrent states"):
        state_bytes(object())
    with pytest.raises(TypeError, match="no KV pool"):
        pool_bytes(object(), object())
    both = SimpleNamespace(full_kv_pool=inner, swa_kv_pool=window)
    assert kv_bytes_per_token(inner) == 200
    assert kv_bytes_per_token(both) == 300


# --- without torch ------------------------------------------------------------------------------


def test_the_costs_need_neither_torch_nor_sglang() -> None:
    source = Path(marconi_utils.__file__).parent
    script = f"""
import sys, types
for name, path in (("sglang", ""), ("sglang.srt", {str(source)!r}),
                   ("sglang.srt.mem_cache", {str(source / "mem_cache")!r})):
    module = types.ModuleType(name)
    module.__path__ = [path]
    sys.modules[name] = module
sys.modules["torch"] = sys.modules["transformers"] = None
from sglang.srt.marconi_utils import cost_by_name
print(cost_by_name("Qwen/Qwen3.5-27B").b)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 16 * 2 * 24 * 2 * 256
