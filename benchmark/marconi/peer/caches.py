"""A pytest plugin: tests of SGLang that make a hybrid cache get ours, and their outcomes a file.

    python -m pytest -p peer.caches --marconi-policy 1 --outcomes FILE TESTS

Without a policy all stays stock. With one, SGLang loads its plugins as a server does, and every
cache with recurrent states that a test makes is made by the hook that makes a server's. Caches
without such states, disabled ones and classes of the tests' own stay what they are, as in life.
Where a test looks inside stock's Python tree core by a class of its own, ours gets that class too.

An error that our cache caught, and let LRU go on, fails the test: in life it only counts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

#: Whose FLOPs a prefix saves. SGLang's tests name no model; bytes are those of their own pools.
MODEL = "Qwen/Qwen3-Next-80B-A3B-Instruct"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--marconi-policy", type=int)
    parser.addoption("--outcomes", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    policy = config.getoption("--marconi-policy")
    outcomes = Outcomes(config.getoption("--outcomes"))
    config.pluginmanager.register(outcomes)
    if policy is not None:
        put_ours_in_place(policy, outcomes.cache_made)


def pytest_pycollect_makeitem(name: str, obj: Any) -> None:
    """Try the classes of tests that SGLang skips without CUDA: most of them need none."""
    if getattr(obj, "__unittest_skip__", False) and "CUDA" in obj.__unittest_skip_why__:
        obj.__unittest_skip__ = False


class Outcomes(logging.Handler):
    """Writes a line for everything that pytest says of a test, as it says it."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self._path = path
        self._caught: list[str] = []
        # All errors that a cache of ours catches are told there.
        logging.getLogger("sglang.srt.mem_cache.marconi").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._caught.append(record.getMessage())

    def cache_made(self) -> None:
        self._write(cache="ours")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report: pytest.TestReport = yield  # type: ignore[assignment]
        if self._caught and report.passed:
            report.outcome, report.longrepr = "failed", self._caught[0]
        if report.when == "teardown":
            self._caught.clear()
        return report  # type: ignore[return-value]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._write(test=report.nodeid, outcome=report.outcome, error=last_line(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(test=report.nodeid, outcome="failed", error=last_line(report))

    def _write(self, **line: str) -> None:
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


def last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The last line of why a test failed or was skipped; empty if it passed."""
    text = report.longrepr or ""
    if isinstance(text, tuple):
        text = text[-1]
    # SGLang's test class tries again and then raises an error of its own: the first one counts.
    for _, crash, _ in getattr(text, "chain", ())[:1]:
        text = crash.message if crash else text
    return (str(text).strip().splitlines() or [""])[-1].strip()


def put_ours_in_place(policy: int, made: Any) -> None:
    """From now on stock's hybrid caches are ours, under ``policy``.

    Args:
        made: called for each.

    Raises:
        MarconiConfigError: this SGLang cannot be wired.
    """
    from sglang.srt.mem_cache.mamba_radix.core import PYTHON
    from sglang.srt.mem_cache.mamba_radix_cache import MambaRadixCache
    from sglang.srt.mem_cache.marconi.costs.known_models import KNOWN_MODELS
    from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
    from sglang.srt.mem_cache.unified_cache.tree_core_registry import register_tree_core_backend
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.marconi import attach_options, create_unified_radix_cache

    load_plugins()
    # Policy 2 alone is tuned, by a process of its own.
    options = {"marconi_evict_policy": policy, "disable_marconi_autotune": policy == 2}
    server_args = attach_options(SimpleNamespace(), options)
    model = SimpleNamespace(hf_config=KNOWN_MODELS[MODEL])

    class Ours(MambaRadixCache):
        def __init__(self, params: Any) -> None:
            def fill(ctx: Any, *, cache_class: Any) -> Any:
                MambaRadixCache.__init__(self, ctx.params, **cache_class.keywords)
                return self

            ctx = SimpleNamespace(
                server_args=server_args,
                params=params,
                is_hybrid_ssm=True,
                enable_hierarchical_cache=False,
                model_config=model,
            )
            create_unified_radix_cache(fill, ctx)
            made()

    def new(cls: type, params: Any = None) -> Any:
        components = getattr(params, "tree_components", None) or ()
        ours = ComponentType.MAMBA in components and not params.disable
        return object.__new__(Ours if ours and cls is UnifiedRadixCache else cls)

    UnifiedRadixCache.__new__ = new
    register_tree_core_backend(PYTHON, core_to_look_into)


def core_to_look_into(params: Any, components: Any) -> Any:
    """Our Python tree core, with all that the test's class of stock's has besides."""
    from sglang.srt.mem_cache.mamba_radix.python_core.tree import MambaRadixTreeCore
    from sglang.srt.mem_cache.unified_cache.tree_core_registry import get_tree_core_factory
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeCore

    # Only its class is asked for: filled, it would take the components for its own.
    with mock.patch.object(UnifiedTreeCore, "__init__", lambda *_: None):
        theirs = type(get_tree_core_factory("python")(params, components))
    if theirs is UnifiedTreeCore:
        return MambaRadixTreeCore(params, components)
    return type(theirs.__name__, (MambaRadixTreeCore, theirs), {})(params, components)
