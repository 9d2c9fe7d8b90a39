"""Skips the backups of ``write_back`` that are not worth their copy, where a policy can tell.

SGLang copies to the host whatever leaves the device, and waits for it. Of that much is never asked
for again, and takes room there from what is.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.marconi.attach.view import TreeView
from sglang.srt.mem_cache.marconi.eviction.policy import HostOrderer
from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import EvictDeviceLeafResult


def is_worth_backup(view: TreeView, node: Any) -> bool:
    """Whether the policy wants a copy of ``node`` on the host, which has none yet."""
    if not view.is_sound:
        # Who asked for the eviction has counted that.
        return True
    view.refresh()
    assert isinstance(view.policy, HostOrderer)
    return view.policy.is_worth_backup(view.prefix(node))


def as_evicted_leaf(dropped: Any) -> EvictDeviceLeafResult:
    """What dropping a leaf gave up, as SGLang expects it of the eviction of a leaf.

    It is taken out of ``dropped``: two results that hold the same would both want it freed.
    """
    given_up = ("device_frees", "host_frees", "tracker", "cache_actions")
    result = EvictDeviceLeafResult(**{name: getattr(dropped, name) for name in given_up})
    for name in given_up:
        setattr(dropped, name, type(getattr(dropped, name))())
    return result
