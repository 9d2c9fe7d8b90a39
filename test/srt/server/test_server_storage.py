"""A real server while the storage below its host tier breaks and comes back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launches.listed import EXTRA, PAGE_64, STORED, STORED_IN
from launches.served import POOLS as TIGHT_POOLS
from launches.trial import conversations
from server_harness import Server, launch_server, tiny_model
from test_server_host_tier import in_turn, needs_room
from test_server_marconi import marconi_state

pytestmark = [pytest.mark.server, needs_room, in_turn]

#: The host has little more room than the device, so that it forgets too.
ARGUMENTS = (
    *(*EXTRA, *PAGE_64, "--marconi-evict-policy", "3", STORED_IN, "file", *STORED),
    *("--enable-hierarchical-cache", "--hicache-ratio", "1.2"),
    *("--hicache-write-policy", "write_through"),
)
CLIENTS = 4
TOKENS = 12
#: What SGLang logs of a page that it cannot write, and of one that it cannot read whole.
NOT_WRITTEN, NOT_READ = "Failed to save tensor", "OSError: Short read"
#: With these it logs the exceptions of reads.
FAILED_READS = ("HiCache prefetch transfer failed", "HiCache sidecar prefetch failed")

#: A prompt, and what the server answered.
Answered = tuple[list[int], dict]


def test_no_answer_fails_or_changes_while_the_storage_breaks_and_comes_back(tmp_path: Path):
    store, aside = tmp_path / "store", tmp_path / "aside"
    environment = {"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(store)}

    def take_away() -> None:
        store.rename(aside)
        store.write_text("no folder")

    def put_back() -> None:
        store.unlink()
        aside.rename(store)

    model = tiny_model("qwen3-next", "float32")
    with launch_server(model, *TIGHT_POOLS, *ARGUMENTS, env=environment) as server:
        early, whole, gone, late = (conversations(seed, 10, 4) for seed in range(8, 12))
        before = marconi_state(server)
        answered = [*ask(server, early), *ask_flushed(server, early)]
        assert stored_tokens(answered) > 0, "nothing came from the storage"

        # Its pages are there, and cannot be read.
        aside.mkdir()
        for page in store.glob("*.bin"):
            shutil.copy(page, aside)
            os.truncate(page, 8)
        unread = ask_flushed(server, early)
        assert stored_tokens(unread) == 0 and NOT_READ in server.log()
        store.rename(tmp_path / "broken")
        aside.rename(store)

        # It goes and comes back between two requests of several clients.
        at = {len(whole): take_away, len(whole) + len(gone): put_back}
        answered += unread + ask(server, [*whole, *gone, *late], at)
        assert NOT_WRITTEN in server.log()
        again = [*ask(server, last_first(early)), *ask_flushed(server, late)]
        state = marconi_state(server)
        assert state["states_evicted"] - before["states_evicted"] > 100
        assert state["lost_tokens"]["kv_evicted"] > 0, "the host forgot none"
        for prompts in (early, late):
            its = [one for one in again if one[0] in prompts]
            assert stored_tokens(its) > 0, "nothing came from the storage afterwards"
        answered += again
        assert state["errors"] == 0 and not state["fallbacks_to_lru"]

        take_away()
        alone: dict[tuple[int, ...], list[int]] = {}
        for prompt, answer in answered[::3]:
            if tuple(prompt) not in alone:
                server.flush_cache()
                uncached = server.generate(prompt, TOKENS)
                assert uncached["meta_info"]["cached_tokens"] == 0
                alone[tuple(prompt)] = uncached["output_ids"]
            assert answer["output_ids"] == alone[tuple(prompt)]
        server.flush_cache()
        log = server.log()
        assert server.alive() and "leak" not in log.lower(), log[-3000:]
        assert log.count("Traceback") == sum(map(log.count, FAILED_READS)), log[-3000:]


def ask(
    server: Server,
    prompts: Sequence[list[int]],
    at: Mapping[int, Callable[[], None]] | None = None,
) -> list[Answered]:
    """Ask ``prompts`` by several clients; ``at`` has what is done before a prompt's turn."""

    def one(number: int) -> Answered:
        if at and number in at:
            at[number]()
        return prompts[number], server.generate(prompts[number], max_new_tokens=TOKENS)

    with ThreadPoolExecutor(CLIENTS) as clients:
        return list(clients.map(one, range(len(prompts))))


def ask_flushed(server: Server, prompts: Sequence[list[int]]) -> list[Answered]:
    """Ask when only the storage has what is cached."""
    server.flush_cache()
    return ask(server, last_first(prompts))


def last_first(prompts: Sequence[list[int]]) -> Sequence[list[int]]:
    """The last turns of the sessions first: SGLang fetches no short prefix."""
    return prompts[::-1]


def stored_tokens(answered: Sequence[Answered]) -> int:
    """Prompt tokens that came from the storage, by the server's own figure."""
    details = (answer["meta_info"].get("cached_tokens_details") or {} for _, answer in answered)
    return sum(its.get("storage", 0) for its in details)
