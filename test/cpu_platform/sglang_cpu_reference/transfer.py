"""Lets NIXL move pools between prefill and decode servers: SGLang calls them a GPU's memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from sglang_cpu_reference import patching

#: NIXL's names for a GPU's memory and for the host's, which all is here.
_GPU, _HOST = "VRAM", "DRAM"


def as_host_memory(original: Callable[..., Any]) -> Callable[..., Any]:
    """A method of NIXL's agent that takes what it is told of a GPU's memory for the host's."""

    @functools.wraps(original)
    def method(*arguments: Any) -> Any:
        told = [_HOST if isinstance(one, str) and one == _GPU else one for one in arguments]
        return original(*told)

    return method


REPLACEMENTS = tuple(
    patching.Replacement(f"nixl._api:nixl_agent.{name}", as_host_memory, wraps=True)
    for name in ("get_reg_descs", "get_xfer_descs", "prep_xfer_dlist")
)


def prepare() -> None:
    """Change NIXL where this server is to use it; later calls do nothing."""
    from sglang.srt.runtime_context import get_disagg

    served = get_disagg()
    if served.disaggregation_mode != "null" and served.disaggregation_transfer_backend == "nixl":
        patching.apply(REPLACEMENTS)
        # Under overlap a prefill server asks CUDA for it, whatever the device is.
        torch.cuda.Event = torch.cpu.Event  # type: ignore[misc, assignment]
