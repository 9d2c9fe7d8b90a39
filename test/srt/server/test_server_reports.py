"""Real servers asked for what users of SGLang reported: each case asserts the right value.

Numbers are issues and pull requests of sgl-project/sglang. Prompts are random tokens.
"""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from server_harness import Server, launch_server, tiny_model
from test_server_admission import BOUNDARY, fresh, hit
from test_server_host_tier import assert_sound, host_tokens, needs_room
from test_server_marconi import (
    POLICY_3,
    TIGHT_POOLS,
    conversations,
    marconi_state,
    outputs,
)

pytestmark = pytest.mark.server

#: Depths at which SGLang sees prompts part, and at which ``extra_buffer`` keeps states.
GRID = 64
JUDICIOUS = (
    *("--marconi-admission", "judicious"),
    *("--marconi-boundary-tokens", ",".join(map(str, BOUNDARY))),
)


def test_shared_prefixes_hit_as_soon_as_they_can():
    arguments = ("--mamba-radix-cache-strategy", "no_buffer", *POLICY_3, *JUDICIOUS)
    with launch_server(tiny_model(), *arguments) as server:
        prompts_hit_from_the_third_request(server)
        prompts_at_once_hit_the_boundary_of_the_first(server)
        a_shared_part_of_changing_length_hits_from_the_second_request(server)
        assert marconi_state(server)["errors"] == 0
        server.flush_cache()
        assert_sound(server)


def prompts_hit_from_the_third_request(server: Server) -> None:
    """#21158, #22935: stock SGLang never hits, for under ``no_buffer`` it makes no state there.

    The first request leaves none where the second parts from it, the second does. A repeated
    prompt parts one token before its end, which always has to be computed.
    """
    rng = random.Random(1)
    for length in (65, 1000, 1024, 1025):
        server.flush_cache()
        repeated = fresh(rng, length)
        deepest = (length - 1) // GRID * GRID
        assert [hit(server, repeated) for _ in range(4)] == [0, 0, deepest, deepest], length
        shared = fresh(rng, length)
        deepest = length // GRID * GRID
        hits = [hit(server, shared + fresh(rng, 50)) for _ in range(4)]
        assert hits == [0, 0, deepest, deepest], length


def prompts_at_once_hit_the_boundary_of_the_first(server: Server) -> None:
    """#28222: the three wait one forward for the state that the first one leaves."""
    rng = random.Random(2)
    server.flush_cache()
    system = fresh(rng, 1024)
    answers = server.generate([system + BOUNDARY + fresh(rng, 128) for _ in range(4)], 1)
    hits = [answer["meta_info"]["cached_tokens"] for answer in answers]
    assert sorted(hits) == [0, len(system), len(system), len(system)]


def a_shared_part_of_changing_length_hits_from_the_second_request(server: Server) -> None:
    """#37198: where all of it is shared but its end, a boundary before that end does it.

    Without one no cache can know at the first request where the next ones will part.
    """
    rng = random.Random(3)
    server.flush_cache()
    base = fresh(rng, 900) + BOUNDARY + fresh(rng, 300)
    lengths = (1200, 1024, 960, 1088, 930)
    hits = [hit(server, base[:length] + fresh(rng, 40)) for length in lengths]
    assert hits[0] == 0 and min(hits[1:]) >= 900, hits


def test_mixed_chunks_and_a_cap_of_one_state_change_no_answer():
    """#39342: a chunk beside decode steps left a state in the tree that was never written."""
    arguments = (
        *("--mamba-radix-cache-strategy", "extra_buffer", *POLICY_3),
        *("--enable-mixed-chunk", "--chunked-prefill-size", "128"),
        *("--mamba-max-states-per-path", "1"),
    )
    with launch_server(tiny_model(dtype="float32"), *TIGHT_POOLS, *arguments) as server:
        prompts = conversations(seed=7)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda prompt: server.generate(prompt, 24), prompts))
        assert sum(answer["meta_info"]["cached_tokens"] for answer in answers) > 0
        state = marconi_state(server)
        assert re.search(r"Prefill batch.*#running-req: [1-9]", server.log()), "none was mixed"
        assert any(kind.startswith("path_cap") for kind, n in state["victims"].items() if n)
        assert state["errors"] == 0 and not state["fallbacks_to_lru"]
        equal_to_a_flushed_server(server, prompts, answers, 24, every=4)
        assert_sound(server)


def equal_to_a_flushed_server(
    server: Server, prompts: list[list[int]], answers: list[dict], tokens: int, *, every: int
) -> None:
    for prompt, answer in list(zip(prompts, answers, strict=True))[::every]:
        server.flush_cache()
        (alone,), cached = outputs(server, [prompt], tokens)
        assert cached == 0 and alone == answer["output_ids"]


@needs_room
@pytest.mark.xdist_group("memory")
def test_what_the_host_has_room_for_comes_back():
    arguments = (
        *("--mamba-radix-cache-strategy", "extra_buffer", *POLICY_3),
        *("--chunked-prefill-size", "128", "--enable-hierarchical-cache"),
        *("--hicache-ratio", "10", "--hicache-write-policy", "write_through"),
    )
    with launch_server(tiny_model(dtype="float32"), *TIGHT_POOLS, *arguments) as server:
        old_prompts_of_a_long_fill_hit(server)
        states_inside_a_conversation_return(server)
        nothing_ends_while_all_states_are_locked_or_in_transfer(server)
        state = marconi_state(server)
        assert state["errors"] == 0 and not state["fallbacks_to_lru"]
        server.flush_cache()
        assert_sound(server)


def old_prompts_of_a_long_fill_hit(server: Server) -> None:
    """#39436, #33713: 4 of 4, where the host has a slot for each of their states.

    With 3 states a prompt and fewer slots on the host, KV lies there that nothing can resume from.
    """
    rng = random.Random(4)
    prompts = [fresh(rng, 300) for _ in range(60)]
    for prompt in prompts:
        assert hit(server, prompt) == 0
    old = [server.generate(prompt, 2) for prompt in prompts[:4] + prompts[28:32]]
    assert [answer["meta_info"]["cached_tokens"] for answer in old] == [256] * 8
    assert sum(map(host_tokens, old)) > 0, "the device held all"


def states_inside_a_conversation_return(server: Server) -> None:
    """#40680: a state with KV behind it goes to the host too before its slot is given away."""
    rng = random.Random(5)
    server.flush_cache()
    conversation = fresh(rng, 300)
    for _ in range(4):
        answer = server.generate(conversation, 2)
        conversation = conversation + answer["output_ids"] + fresh(rng, 100)
    for _ in range(30):
        hit(server, fresh(rng, 70))
    ends = [server.generate(conversation, 2), server.generate(conversation[:320] + BOUNDARY, 2)]
    assert [answer["meta_info"]["cached_tokens"] for answer in ends] == [576, 256]


def nothing_ends_while_all_states_are_locked_or_in_transfer(server: Server) -> None:
    """#36770, #34975, #21379, #37943: requests wait for the transfers.

    Stock SGLang ends here under ``write_through``: "Can not alloc mamba cache".
    """
    server.flush_cache()
    prompts = [fresh(random.Random(i), 300 + 100 * (i % 4)) for i in range(24)] * 2
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: server.generate(prompt, 2), prompts))
    assert sum(map(host_tokens, answers)) > 0, "nothing was loaded"
    equal_to_a_flushed_server(server, prompts[24:], answers[24:], 2, every=3)
