"""Policy 3: evict what is worth least per byte, by odds of reuse learnt from the traffic."""

from sglang.srt.mem_cache.marconi.eviction.value.odds import PrefixClass, ReuseOdds, Role
from sglang.srt.mem_cache.marconi.eviction.value.policy import ValuePolicy, Worth

__all__ = ["PrefixClass", "ReuseOdds", "Role", "ValuePolicy", "Worth"]
