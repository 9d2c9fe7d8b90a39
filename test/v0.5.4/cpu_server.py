"""Serves tiny Qwen3-Next models with SGLang 0.5.4 on a CPU: ``cpu_server.py --model-path …``.

This release has no platform plugins, and its CPU build needs a compiled ``sgl_kernel`` and vLLM's
layers. Here a few functions get a torch form in its place, as soon as their module is imported; the
kernels are those of the CPU platform for SGLang 0.5.23 (``test/cpu_platform``). Scheduler, caches,
pools, model and HTTP server are SGLang's. Each server process imports this file again, because
multiprocessing's ``spawn`` imports the main module.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TORCH_COMPILE_DISABLE"] = "1"

import torch
from sglang_cpu_reference import attention, conv, gated_delta

#: What the flags of a server on a CPU must be in this release.
ARGUMENTS = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--disable-overlap-schedule"),
    *("--sampling-backend", "pytorch", "--grammar-backend", "none", "--dtype", "float32"),
    # The warm-up ends a server that a loaded machine lets wait for two minutes.
    "--skip-server-warmup",
)


# -- references, under the parameters of what they replace


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    output_final_state: bool,
    cu_seqlens: torch.Tensor,
    head_first: bool,
    use_qk_l2norm_in_kernel: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As upstream: N packed sequences from their states [N, HV, V, K] to their last ones."""
    states = initial_state.float().clone()
    out, _, _ = gated_delta.prefill(
        q,
        k,
        v,
        g,
        beta,
        states,
        cu_seqlens,
        head_first,
        use_qk_l2norm_in_kernel,
        torch.arange(len(states)),
    )
    return out, states


def fused_gdn_gating(A_log: torch.Tensor, a: torch.Tensor, dt_bias: torch.Tensor) -> torch.Tensor:
    """Log decay [T, HV]."""
    g, _ = gated_delta.gates(A_log, a, a, dt_bias)
    return g.squeeze(0)


def split_projections(
    mixed_qkvz: torch.Tensor,
    mixed_ba: torch.Tensor,
    num_heads_qk: int,
    num_heads_v: int,
    head_qk: int,
    head_v: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values side by side [B, …], the gate [B, HV, V], and b, a [B, HV].

    Both inputs are grouped by key head.
    """
    group = num_heads_v // num_heads_qk
    qkvz = mixed_qkvz.view(-1, num_heads_qk, 2 * head_qk + 2 * group * head_v)
    q, k, v, z = qkvz.split([head_qk, head_qk, group * head_v, group * head_v], dim=-1)
    b, a = mixed_ba.view(-1, num_heads_qk, 2 * group).split([group, group], dim=-1)
    mixed = torch.cat([part.flatten(1) for part in (q, k, v)], dim=-1)
    return mixed, z.reshape(-1, num_heads_v, head_v), b.flatten(1), a.flatten(1)


def project_inputs(layer: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upstream's two projections, without device streams."""
    return layer.in_proj_qkvz(hidden_states)[0], layer.in_proj_ba(hidden_states)[0]


def gated_rms_norm(norm: Any, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """RMS-normalise x [..., D], then multiply by silu(z)."""
    normed = torch.nn.functional.rms_norm(x.float(), x.shape[-1:], norm.weight.float(), norm.eps)
    return (normed * torch.nn.functional.silu(z.float())).to(x.dtype)


_BACKEND = "sglang.srt.layers.attention.hybrid_linear_attn_backend"
_MODEL = "sglang.srt.models.qwen3_next"
_TORCH_BACKEND = "sglang.srt.layers.attention.torch_native_backend"
REPLACEMENTS: tuple[tuple[str, str, Any], ...] = (
    # A constant bfloat16 upstream: a cached window would be rounded, a prefill's own not.
    ("sglang.srt.configs.mamba_utils", "CONV_DTYPE", torch.float32),
    ("sglang.srt.layers.attention.fla.layernorm_gated", "RMSNorm.forward", gated_rms_norm),
    (_MODEL, "fused_gdn_gating", fused_gdn_gating),
    (_MODEL, "fused_qkvzba_split_reshape_cat", split_projections),
    (_MODEL, "Qwen3GatedDeltaNet._forward_input_proj", project_inputs),
    (_BACKEND, "causal_conv1d_fn", conv.causal_conv1d_fn),
    (_BACKEND, "causal_conv1d_update", conv.causal_conv1d_update),
    (_BACKEND, "chunk_gated_delta_rule", chunk_gated_delta_rule),
    (_BACKEND, "fused_sigmoid_gating_delta_rule_update", gated_delta.decode),
    (_TORCH_BACKEND, "TorchNativeAttnBackend._run_sdpa_forward_extend", attention.extend),
    (_TORCH_BACKEND, "TorchNativeAttnBackend._run_sdpa_forward_decode", attention.decode),
)


# -- stand-ins for packages that have no wheel for this CPU


class StandIn(ModuleType):
    """A module of which any name can be imported; one that is called raises."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_args: Any, **_kwargs: Any) -> Any:
            raise NotImplementedError(f"{self.__name__}.{name} has no CPU reference")

        return missing


#: Names that SGLang takes from vLLM without AMX: its own classes serve as well.
_RETURNED = {
    "vllm.model_executor.layers.activation": "sglang.srt.layers.activation",
    "vllm.model_executor.layers.layernorm": "sglang.srt.layers.layernorm",
}
_STANDING_IN = (
    "sgl_kernel.kvcacheio",
    "torchao.quantization.observer",
    "vllm._custom_ops",
    *_RETURNED,
)


class Finder:
    """Gives stand-ins for missing packages, and replaces functions once a module is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if any(f"{whole}.".startswith(f"{name}.") for whole in _STANDING_IN):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        wanted = [(path, by) for module, path, by in REPLACEMENTS if module == name]
        if not wanted:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            loader = spec.loader
            run = loader.exec_module

            @functools.wraps(run)
            def run_and_replace(module: ModuleType) -> None:
                run(module)
                for path, by in wanted:
                    replace(module, path, by)

            loader.exec_module = run_and_replace  # type: ignore[method-assign]
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        own = sys.modules.get(_RETURNED.get(module.__name__, ""))
        if own is not None:
            names = {key: value for key, value in vars(own).items() if isinstance(value, type)}
            module.__dict__.update(names)


def replace(module: ModuleType, path: str, by: Any) -> None:
    """Put ``by`` in place of ``path`` in a module; raises AttributeError if it is not there."""
    *parents, name = path.split(".")
    owner: Any = module
    for parent in parents:
        owner = getattr(owner, parent)
    getattr(owner, name)
    setattr(owner, name, by)


def use_cpu_as_default_device() -> None:
    """A CUDA build of torch names CUDA even where there is no driver."""
    original = torch.get_device_module

    @functools.wraps(original)
    def get_device_module(device: Any = None) -> Any:
        return torch.cpu if device is None else original(device)

    torch.get_device_module = get_device_module


sys.meta_path.insert(0, Finder())
use_cpu_as_default_device()
torch.set_num_threads(1)

if __name__ == "__main__":
    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    try:
        launch_server(prepare_server_args([*ARGUMENTS, *sys.argv[1:]]))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
