"""What must hold before SGLang imports anything else: a device module and the kernel stand-in.

A CUDA build of torch on a machine without a driver still names CUDA as its device module and
refuses to pin memory, and SGLang's CPU code imports ``sgl_kernel``, of which no wheel exists for
an arbitrary x86-64 CPU. Both are settled here, in the process that activates the platform, and
only there.
"""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

from sglang_cpu_reference import conv, drafts, gated_delta, layers

# Each server process imports some six thousand modules; at Python's 700 a tenth of its start-up
# is the collector looking at them.
YOUNG_OBJECTS = 50_000

_PREPARED = False
# Kept for the life of the process: torch drops an operator when its library object dies.
_LIBRARIES: list[Any] = []


def prepare() -> None:
    """Adapt torch and install the stand-in modules; later calls do nothing."""
    global _PREPARED
    if _PREPARED:
        return
    gc.set_threshold(YOUNG_OBJECTS)
    _use_cpu_as_default_device_module()
    _make_pinning_a_no_op()
    _install_kernel_modules()
    _define_kernel_operators()
    _PREPARED = True


def _use_cpu_as_default_device_module() -> None:
    original = torch.get_device_module

    def get_device_module(device: torch.device | str | None = None) -> Any:
        return torch.cpu if device is None else original(device)

    torch.get_device_module = get_device_module  # type: ignore[assignment]


def _make_pinning_a_no_op() -> None:
    # The decode path of the mamba cache pins its track mask without asking the platform.
    def pin_memory(self: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return self

    torch.Tensor.pin_memory = pin_memory  # type: ignore[method-assign, assignment]


def _install_kernel_modules() -> None:
    package = _KernelModule("sgl_kernel")
    package.__path__ = []
    mamba = _KernelModule("sgl_kernel.mamba")
    mamba.__dict__.update(
        causal_conv1d_fn_cpu=conv.causal_conv1d_fn,
        causal_conv1d_update_cpu=conv.causal_conv1d_update,
        chunk_gated_delta_rule_cpu=gated_delta.prefill,
    )
    speculative = _KernelModule("sgl_kernel.speculative")
    speculative.__dict__.update(reconstruct_indices_from_tree_mask=drafts.read_masks)
    package.__dict__.update(
        mamba=mamba,
        speculative=speculative,
        build_tree_kernel_efficient_cpu=drafts.build_tree,
        verify_tree_greedy_cpu=drafts.verify_greedy,
        fill_bonus_tokens_cpu=drafts.last_accepted,
        fill_accept_out_cache_loc_cpu=drafts.accepted_slots,
        copy_all_layer_kv_cache_cpu=drafts.move_slots,
        assign_extend_cache_locs_cpu=drafts.slots_between,
        assign_req_to_token_pool_cpu=drafts.put_slots_between,
        assign_draft_cache_locs_contiguous_cpu=drafts.slots_from,
    )
    for module in (package, mamba, speculative):
        sys.modules[module.__name__] = module


class _KernelModule(types.ModuleType):
    """A stand-in module: names that are only imported exist, and raise when they are called."""

    __sglang_cpu_reference__ = True

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        qualified = f"{self.__name__}.{name}"

        def missing(*_args: Any, **_kwargs: Any) -> Any:
            raise NotImplementedError(f"{qualified} has no CPU reference in sglang-cpu-reference")

        missing.__name__ = name
        return missing


def _define_kernel_operators() -> None:
    library: Any = torch.library.Library("sgl_kernel", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema, function in OPERATORS:
        library.define(schema)
        library.impl(schema.partition("(")[0], function, "CPU")
    _LIBRARIES.append(library)


OPERATORS: tuple[tuple[str, Callable[..., Any]], ...] = (
    (
        "fused_gdn_gating_cpu(Tensor A_log, Tensor a, Tensor b, Tensor dt_bias) "
        "-> (Tensor, Tensor)",
        gated_delta.gates,
    ),
    (
        "fused_sigmoid_gating_delta_rule_update_cpu(Tensor A_log, Tensor dt_bias, Tensor q, "
        "Tensor k, Tensor v, Tensor a, Tensor b, Tensor(a!) initial_state_source, "
        "Tensor initial_state_indices, Tensor cu_seqlens, bool use_qk_l2norm_in_kernel, "
        "float softplus_beta=1.0, float softplus_threshold=20.0, bool is_kda=False, "
        "bool disable_state_update=False, Tensor(b!)? intermediate_states_buffer=None, "
        "Tensor? intermediate_state_indices=None, int? cache_steps=None, "
        "Tensor? retrieve_parent_token=None) -> Tensor",
        gated_delta.decode_or_verify,
    ),
    (
        "fused_sigmoid_mul_cpu(Tensor(a!) x, Tensor gate) -> ()",
        layers.multiply_by_sigmoid,
    ),
    (
        "fused_qk_gemma_rmsnorm_cpu(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, "
        "float eps, int head_dim) -> (Tensor, Tensor)",
        layers.normed_queries_and_keys,
    ),
    (
        "fused_qk_gemma_rmsnorm_with_gate_cpu(Tensor q_gate, Tensor k, Tensor q_weight, "
        "Tensor k_weight, float eps, int head_dim, int num_heads) -> (Tensor, Tensor, Tensor)",
        layers.normed_queries_keys_and_gate,
    ),
    (
        "fused_qkvzba_split_reshape_cat_contiguous_cpu(Tensor qkvz, Tensor ba, int num_heads_qk, "
        "int num_heads_v, int head_qk, int head_v) -> (Tensor, Tensor, Tensor, Tensor)",
        layers.split_projections,
    ),
)
