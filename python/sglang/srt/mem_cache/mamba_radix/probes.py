"""Which requests are SGLang's own health checks, and so nobody's."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.utils import is_health_check_generate_req


def is_probe(req: Any) -> bool:
    """A health check that generates.

    SGLang's own answer raises where the name of a request is no text. Its scheduler asks too, of
    the requests that users send; a request that was made beside the scheduler must not end here.
    """
    named = isinstance(getattr(req, "rid", None), str)
    return named and bool(is_health_check_generate_req(req))
