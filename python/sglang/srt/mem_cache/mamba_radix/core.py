"""Which tree core of SGLang 0.5.23 a cache gets: the Rust one wherever it can serve."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.mamba_radix.admission import GivingMambaComponent
from sglang.srt.mem_cache.marconi.attach.setup import LowerTier, MarconiSetup
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.tree_core_registry import (
    get_tree_core_factory,
    register_tree_core_backend,
    select_tree_core_backend,
)
from sglang.srt.runtime_context import get_exec

if TYPE_CHECKING:
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams

logger = logging.getLogger(__name__)

PYTHON, RUST, HOSTED_RUST = "marconi-python", "marconi-rust", "marconi-rust-hosted"


def with_tree_core(params: CacheInitParams, setup: MarconiSetup) -> CacheInitParams:
    """``params`` with the tree core that serves ``setup``, and its components."""
    _register()
    reason = python_core_reason(params, setup)
    if reason is None:
        backend = RUST if setup.lower_tier is None else HOSTED_RUST
        components = {ComponentType.MAMBA: GivingMambaComponent}
    else:
        from sglang.srt.mem_cache.mamba_radix.python_core.tree import COMPONENTS

        logger.info("Marconi uses the Python tree core: %s", reason)
        backend, components = PYTHON, COMPONENTS
    return replace(
        params,
        tree_core_backend=backend,
        component_registry_override={**(params.component_registry_override or {}), **components},
    )


def python_core_reason(params: CacheInitParams, setup: MarconiSetup) -> str | None:
    """Why the Rust core cannot serve ``setup``; ``None`` if it can."""
    backend = select_tree_core_backend(params)
    if backend != "rust":
        return f"SGLang selects the {backend} tree core"
    others = set(params.tree_components or ()) - {ComponentType.FULL, ComponentType.MAMBA}
    if others:
        return f"the tree has {', '.join(sorted(other.name for other in others))} components"
    return slower_core_reason(lower_tier=setup.lower_tier, shared_memory=setup.shared_memory)


def slower_core_reason(*, lower_tier: LowerTier | None, shared_memory: bool) -> str | None:
    """Why the Rust core cannot serve under a policy, in words; ``None`` if it can."""
    if lower_tier is LowerTier.HOST:
        return "there is a host tier below one memory for both" if shared_memory else None
    return None if lower_tier is None else f"below the device is {lower_tier.value}"


def _register() -> None:
    factories = {
        PYTHON: _python_core,
        RUST: partial(_rust_core, hosted=False),
        HOSTED_RUST: partial(_rust_core, hosted=True),
    }
    for name, factory in factories.items():
        if get_tree_core_factory(name) is None:
            register_tree_core_backend(name, factory)


def _python_core(params: CacheInitParams, components: dict[ComponentType, Any]) -> Any:
    from sglang.srt.mem_cache.mamba_radix.python_core.tree import MambaRadixTreeCore

    return MambaRadixTreeCore(params, components)


def _rust_core(
    params: CacheInitParams, components: dict[ComponentType, Any], *, hosted: bool
) -> Any:
    # Importing it loads the extension, which a platform may lack.
    from sglang.srt.mem_cache.mamba_radix.rust_core.hosted_tree import HostedRustTreeCore
    from sglang.srt.mem_cache.mamba_radix.rust_core.tree import MambaRadixRustTreeCore

    return (HostedRustTreeCore if hosted else MambaRadixRustTreeCore)(
        params,
        components[ComponentType.MAMBA].cache,
        states_per_path=get_exec().mamba.mamba_max_states_per_path,
    )
