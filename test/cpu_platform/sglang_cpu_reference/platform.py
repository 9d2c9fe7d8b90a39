"""The SGLang platform: an in-tree CPU that decides its own defaults and brings its own kernels."""

from __future__ import annotations

import json
import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sglang.srt.platforms.cpu import CpuSRTPlatform
from sglang.srt.platforms.interface import PlatformCapabilities

from sglang_cpu_reference import (
    SGLANG_VERSION,
    latent_attention,
    patching,
    threads,
    transfer,
    unified_memory,
)

logger = logging.getLogger(__name__)

CONV_DTYPES = {"float32": "float32", "float": "float32", "float16": "float16", "half": "float16"}


#: Set to 1 for overlap scheduling where SGLang can have it.
OVERLAP_VARIABLE = "SGLANG_CPU_REFERENCE_OVERLAP"


class CpuReferencePlatform(CpuSRTPlatform):  # type: ignore[misc, unused-ignore]
    """A CPU to every `is_cpu()`, and out-of-tree wherever SGLang asks a platform for its opinion.

    Being out-of-tree is what makes SGLang consult the methods below instead of its tables for
    in-tree devices.
    """

    device_name: str = "cpu"
    capabilities = PlatformCapabilities()

    def __init__(self) -> None:
        # SGLang logs and swallows what the entry point raises, but not what a constructor does.
        installed = version("sglang")
        if installed != SGLANG_VERSION:
            raise patching.IncompatibleSGLang(
                f"sglang-cpu-reference is written for sglang {SGLANG_VERSION}, found {installed}"
            )
        unified_memory.register()

    def is_out_of_tree(self) -> bool:
        return True

    def apply_server_args_defaults(self, server_args: Any) -> None:
        server_args.device = "cpu"
        if not overlaps(server_args):
            server_args.disable_overlap_schedule = True
        # The only pair that `host_tier` serves. SGLang's default is a device kernel, and a layout
        # that its own host pool of recurrent states refuses.
        server_args.hicache_io_backend = "direct"
        server_args.hicache_mem_layout = "page_first_direct"
        if server_args.attention_backend is None:
            server_args.attention_backend = self.get_default_attention_backend()
        dtype = checkpoint_dtype(server_args.model_path)
        if server_args.dtype == "auto" and dtype == "float32":
            # SGLang's choice would be half precision, which a CPU has no use for.
            server_args.dtype = dtype
        served = dtype if server_args.dtype == "auto" else server_args.dtype
        # SGLang keeps the convolution's window in bfloat16 whatever the model's type is, and copies
        # into it without converting.
        default_variable("SGLANG_MAMBA_CONV_DTYPE", CONV_DTYPES.get(served or ""))
        ranks = server_args.tp_size * server_args.dp_size * server_args.pp_size
        # Without it SGLang demands a NUMA node for each rank.
        default_variable(threads.BIND_VARIABLE, threads.share(ranks) if ranks > 1 else None)

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def support_mamba_cache_extra_buffer(self) -> bool:
        return True

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        """Whether drafts of an algorithm are served; n-gram drafts, which ask nobody, are."""
        return algorithm == "EAGLE"

    def init_backend(self) -> None:
        """Put the reference kernels in place; SGLang calls this in each worker process."""
        from sglang.srt.runtime_context import get_device

        from sglang_cpu_reference.replacements import REPLACEMENTS

        patching.apply(REPLACEMENTS)
        latent_attention.register()
        transfer.prepare()
        threads.settle(get_device().gpu_id)
        logger.info("CPU reference kernels are in place (%d names)", len(REPLACEMENTS))


def overlaps(server_args: Any) -> bool:
    """Whether batches follow one another as under overlap scheduling.

    ``no_buffer``, and so ``auto``, cannot have it, the lazy buffer cannot do without, and one
    memory waits for a GPU's streams where it compacts.
    """
    strategy = server_args.mamba_radix_cache_strategy
    if server_args.enable_unified_memory:
        return False
    wanted = os.environ.get(OVERLAP_VARIABLE) == "1"
    return strategy == "extra_buffer_lazy" or (wanted and strategy == "extra_buffer")


_DEFAULTED: set[str] = set()


def default_variable(name: str, value: str | None) -> None:
    """Set a variable for the workers to inherit, unless the user did.

    One process may start several engines: what was set for one must not reach the next.
    """
    if name in os.environ and name not in _DEFAULTED:
        return
    if value is None:
        os.environ.pop(name, None)
        _DEFAULTED.discard(name)
    else:
        os.environ[name] = value
        _DEFAULTED.add(name)


def checkpoint_dtype(model_path: str) -> str | None:
    """The type that a local checkpoint declares; None if there is none to read."""
    path = Path(model_path) / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text())
    declared = config.get("dtype") or config.get("torch_dtype")
    return declared if isinstance(declared, str) else None
