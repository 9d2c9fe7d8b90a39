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

from sglang_cpu_reference import conv, gated_delta

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
    package.__dict__["mamba"] = mamba
    sys.modules["sgl_kernel"] = package
    sys.modules["sgl_kernel.mamba"] = mamba


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
        "float softplus_beta=1.0, float softplus_threshold=20.0) -> Tensor",
        gated_delta.decode,
    ),
)
