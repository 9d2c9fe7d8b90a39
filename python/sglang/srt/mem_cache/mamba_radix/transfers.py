"""Waits for the host tier's transfers where they hold the states that an allocation needs.

A prefix is locked while it is copied to the host or back. SGLang counts on no such lock when it
admits a request, and ends the scheduler when a slot for its state cannot be had.
"""

from __future__ import annotations

from sglang.srt.mem_cache.mamba_radix.events import HostCache


def finish_transfers(cache: HostCache) -> bool:
    """Wait for the copies under way and unlock what they held; ``False`` if there were none.

    All ranks have the same ones under way, so all wait for the same.
    """
    controller = cache.cache_controller
    if controller is None:
        return False
    backups = len(cache.ongoing_write_through)
    if backups:
        cache.writing_check(write_back=True)
    loads = len(controller.ack_load_queue)
    if loads:
        cache.loading_check(finish_count=loads)
    return backups + loads > 0
