"""Reads a model config, whether it is a transformers object or the dict of a ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MissingFieldError(ValueError):
    """A config lacks a field which the cost of its architecture depends on."""


class Fields:
    """Fields of a config by name; several names are alternatives, the first that is set counts."""

    def __init__(self, config: Any, overrides: Mapping[str, Any] | None = None) -> None:
        self._config = config
        self._overrides = overrides or {}

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of ``names`` that is present and not None, else ``default``."""
        for name in names:
            value = self._read(name)
            if value is not None:
                return value
        return default

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of ``names`` as an int.

        Raises:
            MissingFieldError: if none is set and there is no ``default``.
        """
        value = self.get(*names, default=default)
        if value is None:
            raise MissingFieldError(f"the config of {self.label()} has no {' or '.join(names)}")
        return int(value)

    def nested(self, *names: str) -> Fields | None:
        """A sub-config, or None."""
        value = self.get(*names)
        return None if value is None else Fields(value)

    def override(self, values: Mapping[str, Any]) -> Fields:
        """The same config with some fields replaced."""
        return Fields(self._config, {**self._overrides, **values})

    def label(self) -> str:
        """What to call this config in a message."""
        architectures = self.get("architectures") or []
        label = architectures[0] if architectures else self.get("model_type", default="this model")
        return str(label)

    def _read(self, name: str) -> Any:
        if name in self._overrides:
            return self._overrides[name]
        if isinstance(self._config, Mapping):
            return self._config.get(name)
        return getattr(self._config, name, None)
