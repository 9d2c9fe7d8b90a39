"""The four policies of the paper's comparison, by their short names."""

from __future__ import annotations

from typing import Literal, get_args

Policy = Literal["vllm", "v1", "v2", "v3"]
"""``vllm``: vLLM+, a state per block, LRU. ``v1``: SGLang+, LRU leaves. ``v2``: Marconi, its weight
tuned once. ``v3``: Marconi's score with a fixed weight. (Paper section 5; specification 6 and 8.)
"""

POLICIES: tuple[Policy, ...] = get_args(Policy)
