"""What is asked of a running server besides replies: is it there, its model, its counters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import requests

ASK_SECONDS = 60.0
FLUSH_ATTEMPTS = 100


class ServerUnreachable(RuntimeError):
    """Nobody answers at an address, or not as a server does."""


def served_model(url: str) -> str:
    """The name of the model that a server serves.

    Raises:
        ServerUnreachable: nobody answers there.
    """
    try:
        answer = requests.get(url + "/v1/models", timeout=ASK_SECONDS)
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (requests.RequestException, ValueError, KeyError, IndexError) as error:
        raise ServerUnreachable(
            f"--url is {url!r}, but no server answers at {url}/v1/models: {error}"
        ) from error


def flush_cache(url: str) -> None:
    """Empty the prefix cache once the last request is on its way out.

    Raises:
        ServerUnreachable: the server does not do it.
    """
    for _ in range(FLUSH_ATTEMPTS):
        answer = requests.post(url + "/flush_cache", timeout=ASK_SECONDS)
        if answer.ok:
            return
        time.sleep(0.1)
    raise ServerUnreachable(f"{url} does not flush its cache: {answer.text[:200]}")


def internal_states(url: str) -> list[Mapping[str, Any]]:
    """The ``internal_states`` of ``/server_info``, one a data-parallel replica; none elsewhere."""
    answer = requests.get(url + "/server_info", timeout=ASK_SECONDS)
    states = answer.json().get("internal_states", []) if answer.ok else []
    return [state for state in states if isinstance(state, dict)]


def marconi_counters(url: str) -> list[Mapping[str, Any]]:
    """Marconi's counters since the start, one a replica; none for stock SGLang."""
    states = (state.get("marconi") for state in internal_states(url))
    return [state for state in states if isinstance(state, dict)]
