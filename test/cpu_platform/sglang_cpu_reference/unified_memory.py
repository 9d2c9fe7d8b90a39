"""Lets the reference kernels serve `--enable-unified-memory`, where SGLang goes by kernels' names.

Under unified memory the layers of a token or state lie side by side, so a layer is a strided view
of the buffer, and slot ids are virtual. The reference kernels index views row by row, whatever
their strides; `attention` translates the ids that it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

STEP = "handle_page_major_kv_layout"


def register() -> None:
    """Put :func:`allow_reference_kernels` around SGLang's check; later calls do nothing."""
    from sglang.srt.arg_groups import resolution_hooks

    if allow_reference_kernels not in resolution_hooks._HOOKS.get(STEP, ()):
        resolution_hooks.register_resolution_hook(STEP)(allow_reference_kernels)


def allow_reference_kernels(server_args: Any, previous: Callable[[Any], None]) -> None:
    """SGLang's check of the backends' names, passed over where the reference kernels serve."""
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view

    view = resolving_view(server_args)
    if not (view.enable_unified_memory and view.attention_backend == "torch_native"):
        previous(server_args)
        return
    declare_resolution(server_args, "sglang_cpu_reference", enable_page_major_kv_layout=True)


def accept_unified_pools(original: Callable[..., None]) -> Callable[..., None]:
    """SGLang refuses what out-of-tree platforms cannot build; its unified pools are plain torch."""

    def reject_out_of_tree_path(platform: Any, *, subsystem: str) -> None:
        if not subsystem.startswith("the unified memory pool"):
            original(platform, subsystem=subsystem)

    return reject_out_of_tree_path
