"""The paper's simulated world: one byte budget, a radix tree whose nodes each own a state.

cache = PaperCache(PaperConfig(policy="v3", capacity_bytes=10**9, alpha=0.5))
record = cache.serve(input_tokens, output_tokens)
record.matched, record.evictions, cache.summary()
"""

from paper.cost import PaperModel
from paper.engine import PaperCache, PaperConfig, TreeNode
from paper.modes import AS_PUBLISHED, CORRECTED, MODES, Fixes
from paper.policies import POLICIES, Policy
from paper.records import Eviction, RequestRecord, Summary
from paper.tuner import TunerReport

__all__ = [
    "AS_PUBLISHED",
    "CORRECTED",
    "MODES",
    "POLICIES",
    "Eviction",
    "Fixes",
    "PaperCache",
    "PaperConfig",
    "PaperModel",
    "Policy",
    "RequestRecord",
    "Summary",
    "TreeNode",
    "TunerReport",
]
