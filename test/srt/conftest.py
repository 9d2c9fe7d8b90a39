"""Settings that all tests share: no test depends on how fast or loaded the machine is."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")
