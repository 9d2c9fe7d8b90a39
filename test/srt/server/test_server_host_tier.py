"""Real servers whose victims go to the host tier (HiCache) and come back from there."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_harness import Server, launch_server, tiny_model
from test_server_marconi import MARCONI, TIGHT_POOLS, conversations, marconi_state

#: SGLang refuses a host tier that would leave less than 10 GiB of memory free.
ROOM = 11 * 2**30
needs_room = pytest.mark.skipif(
    psutil.virtual_memory().available < ROOM,
    reason="SGLang wants 10 GiB left beside a host tier",
)
#: Those that want much memory run one after another.
in_turn = pytest.mark.xdist_group("memory")
pytestmark = [pytest.mark.server, needs_room, in_turn]

HOST_TIER = ("--enable-hierarchical-cache", "--hicache-ratio", "2")
TOKENS = 12

#: Prompts that leave a state in each of three chunks, and 16 tokens behind the last.
PROMPTS, PROMPT_TOKENS = 60, 400
LAST_STATE_AT = 384
#: The host has room for 101 states, and for the KV of 90 such prompts.
FEW_STATES = (
    *("--max-total-tokens", "9000", "--max-running-requests", "4", "--chunked-prefill-size", "128"),
    *("--max-mamba-cache-size", "25", "--context-length", "4096"),
    *("--enable-hierarchical-cache", "--hicache-ratio", "4", "--enable-metrics"),
)


def host_tokens(answer: dict) -> int:
    """Prompt tokens that came from the host tier, by the server's own figure."""
    return (answer["meta_info"].get("cached_tokens_details") or {}).get("host", 0)


def assert_sound(server: Server) -> None:
    """Alive, and no complaint in its log; SGLang checks its pools when it is idle."""
    log = server.log()
    assert server.alive() and "leak" not in log.lower() and "Traceback" not in log, log[-3000:]


@pytest.mark.parametrize(
    ("write_policy", "page_size"), [("write_back", "1"), ("write_through", "64")]
)
def test_victims_come_back_from_the_host_with_the_same_answers(write_policy, page_size):
    arguments = (
        *("--mamba-radix-cache-strategy", "extra_buffer", *HOST_TIER, *MARCONI),
        *("--hicache-write-policy", write_policy, "--page-size", page_size),
    )
    model = tiny_model("qwen3-next", "float32")
    with launch_server(model, *TIGHT_POOLS, *arguments) as server:
        prompts = conversations(seed=5)
        before = marconi_state(server)
        answers = [server.generate(prompt, max_new_tokens=TOKENS) for prompt in prompts]
        state = marconi_state(server)
        returned = [i for i, answer in enumerate(answers) if host_tokens(answer) > 0]
        assert state["states_evicted"] - before["states_evicted"] > 10
        assert len(returned) > 3, "nothing came back from the host"
        assert state["errors"] == 0 and not state["fallbacks_to_lru"]
        cached = sum(answer["meta_info"]["cached_tokens"] for answer in answers)
        assert state["hit_tokens"] - before["hit_tokens"] == cached, "ours is the server's figure"

        for i in {*returned[:16], *range(0, len(prompts), 8)}:
            server.flush_cache()
            alone = server.generate(prompts[i], max_new_tokens=TOKENS)
            assert alone["meta_info"]["cached_tokens"] == 0, "a flush empties the host tier too"
            assert alone["output_ids"] == answers[i]["output_ids"], (
                f"prompt {i}: {host_tokens(answers[i])} tokens came from the host"
            )
        server.flush_cache()

        # Loads and backups while other requests run, now that the host tier must evict too.
        later = conversations(seed=6, count=30, turns=8)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda prompt: server.generate(prompt, TOKENS), later))
        assert sum(map(host_tokens, answers)) > 0
        lost_before, state = state["lost_tokens"], marconi_state(server)
        assert state["lost_tokens"]["kv_evicted"] > lost_before["kv_evicted"], (
            "the host forgot none"
        )
        assert state["errors"] == 0 and not state["fallbacks_to_lru"]
        server.flush_cache()
        assert server.generate([5, 6, 7], max_new_tokens=2)["meta_info"]["completion_tokens"] == 2
        server.flush_cache()
        assert_sound(server)


@pytest.mark.parametrize(
    ("write_policy", "page_size"), [("write_through", "1"), ("write_back", "64")]
)
def test_where_the_host_has_few_states_the_last_of_each_prompt_stays(write_policy, page_size):
    """Copies of all states do not fit, those of the last do, as all KV does: LRU hits nothing."""
    rng = random.Random(7)
    prompts = [[rng.randrange(3, 200) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
    again = prompts[: PROMPTS // 5]
    arguments = (
        *("--mamba-radix-cache-strategy", "extra_buffer", "--marconi-evict-policy", "3"),
        *("--hicache-write-policy", write_policy, "--page-size", page_size),
    )
    model = tiny_model("qwen3-next", "float32")
    with launch_server(model, *FEW_STATES, *arguments) as server:
        for prompt in prompts:
            server.generate(prompt, max_new_tokens=4)
        seen = host_metrics(server)
        room = seen["hicache_host_mamba_total_states"]
        skipped = marconi_state(server)["backups_skipped"]
        if write_policy == "write_back":
            assert skipped > room, "states that the next chunk supersedes were copied"
        else:
            assert PROMPTS < room == seen["hicache_host_mamba_used_states"]
            assert seen["hicache_backup_tokens_total"] > 1.5 * room, "all states fitted"
            assert skipped == 0
        assert seen["hicache_host_used_tokens"] < seen["hicache_host_total_tokens"] * 2 / 3

        answers = [server.generate(prompt, max_new_tokens=TOKENS) for prompt in again]
        assert [host_tokens(answer) for answer in answers] == [LAST_STATE_AT] * len(again)
        state = marconi_state(server)
        assert state["errors"] == 0 and not state["fallbacks_to_lru"]
        for prompt, answer in zip(again, answers, strict=True):
            server.flush_cache()
            alone = server.generate(prompt, max_new_tokens=TOKENS)
            assert alone["meta_info"]["cached_tokens"] == 0
            assert alone["output_ids"] == answer["output_ids"]
        server.flush_cache()
        assert_sound(server)


def host_metrics(server: Server) -> dict[str, float]:
    """What SGLang says of the host's pools, by name; of copies those of states."""
    return {
        sample.name.removeprefix("sglang:"): sample.value
        for family in text_string_to_metric_families(server.metrics())
        for sample in family.samples
        if "hicache" in sample.name and sample.labels.get("pool", "mamba") == "mamba"
    }
