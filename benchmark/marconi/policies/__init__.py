"""Eviction policies by name: what a cache is made with under each value of ``--policy``.

context = PolicyContext(cost, 64, kv_tokens, state_slots, requests)
arguments = cache_arguments("marconi:0.5", context)
with server_context(chunk=1, max_states_per_path=arguments.max_states_per_path):
    cache = CpuCache(**arguments.for_cache(context))
    begin = getattr(arguments.policy, "begin", None)
    # Before each request, if the policy has it: begin(index, prompt_ids, output_ids)

A policy is a function under ``@policy_family`` in a module of this package; modules are found by
themselves.
"""

from importlib import import_module
from pkgutil import iter_modules

from policies.registry import (
    CacheArguments,
    PolicyArguments,
    PolicyContext,
    PolicyError,
    Recipe,
    cache_arguments,
    check_policy,
    policy_family,
    policy_forms,
    policy_help,
    policy_names,
)

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "CacheArguments",
    "PolicyArguments",
    "PolicyContext",
    "PolicyError",
    "Recipe",
    "cache_arguments",
    "check_policy",
    "policy_family",
    "policy_forms",
    "policy_help",
    "policy_names",
]
