"""Entry point: offers the CPU reference platform to SGLang where nothing better could serve."""

from __future__ import annotations

import importlib.util
import logging
import os
import platform as os_platform  # "platform" would be this package's module of that name
import sys

__all__ = ["SGLANG_VERSION", "activate"]

SGLANG_VERSION = "0.5.23"
PLATFORM_CLASS = "sglang_cpu_reference.platform.CpuReferencePlatform"
ENGINE_VARIABLE = "SGLANG_USE_CPU_ENGINE"
# Torch compiles some small functions on first use: seconds for each new shape of a first request,
# and a C++ compiler needed. Dynamo reads this when it is imported.
COMPILE_VARIABLE = "TORCH_COMPILE_DISABLE"

logger = logging.getLogger(__name__)


def activate() -> str | None:
    """Return the platform's class path, or None (and change nothing) where it does not belong.

    SGLang calls this in every process, spawned ones included, before any module asks which
    device it runs on; that is early enough to choose the CPU engine and to offer the stand-in
    for ``sgl_kernel`` without a flag from the user.
    """
    reason = reason_to_stay_away()
    if reason is not None:
        logger.debug("sglang-cpu-reference stays inactive: %s", reason)
        return None
    from sglang_cpu_reference import host

    os.environ[ENGINE_VARIABLE] = "1"
    os.environ.setdefault(COMPILE_VARIABLE, "1")
    host.prepare()
    return PLATFORM_CLASS


def reason_to_stay_away() -> str | None:
    """Say why another platform should serve here; None if this one should."""
    if os_platform.machine().lower() not in ("x86_64", "amd64"):
        return f"the machine is {os_platform.machine()}, not x86-64"
    if os.environ.get(ENGINE_VARIABLE) == "0":
        return f"{ENGINE_VARIABLE}=0"
    accelerator = _accelerator()
    if accelerator is not None:
        return f"{accelerator} is available"
    if not _is_our_stand_in("sgl_kernel") and importlib.util.find_spec("sgl_kernel") is not None:
        return "a real sgl_kernel is installed"
    return None


def _accelerator() -> str | None:
    """Name an accelerator that torch can use, if there is one."""
    import torch

    for name in ("cuda", "xpu", "npu", "musa", "mps"):
        module = getattr(torch, name, None)
        if module is not None and module.is_available():
            return name
    return None


def _is_our_stand_in(name: str) -> bool:
    """True once :mod:`sglang_cpu_reference.host` has put its own module under ``name``."""
    return getattr(sys.modules.get(name), "__sglang_cpu_reference__", False)
