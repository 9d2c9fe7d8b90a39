"""Settings that all tests share: no machine's speed and no other test decides what one sees."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any_machine")


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Take back what a test wrote into the environment.

    SGLang writes resolved launch flags there (``--mamba-ssm-dtype``), and reads them in every
    later model config of the process.
    """
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(before)
