"""Streaming sessions: every turn is a counted request, with the tokens that its session held."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from server_harness import Server, launch_server, recorded_lines, tiny_model
from test_server_marconi import MARCONI, TIGHT_POOLS, conversations, marconi_state, outputs

TURNS, TOKENS = 5, 8


def turns_of(rng: random.Random) -> list[list[int]]:
    lengths = (rng.randrange(100, 300), *(rng.randrange(20, 90) for _ in range(TURNS - 1)))
    return [[rng.randrange(3, 200) for _ in range(length)] for length in lengths]


def ask(server: Server, session: str, tokens: list[int]) -> dict:
    fields = {"session_params": {"id": session}}
    return server.generate(tokens, max_new_tokens=TOKENS, **fields)


@pytest.mark.server
def test_every_turn_counts_and_answers_are_those_of_whole_prompts(tmp_path: Path):
    recording = tmp_path / "requests.jsonl"
    arguments = (*MARCONI, "--enable-streaming-session", "--marconi-record", str(recording))
    rng = random.Random(3)
    sessions = {f"session-{number}": turns_of(rng) for number in range(3)}
    others = conversations(seed=9, count=6, turns=TURNS)
    with launch_server(tiny_model("qwen3-next", "float32"), *TIGHT_POOLS, *arguments) as server:
        before = marconi_state(server)
        histories: dict[str, list[int]] = {name: [] for name in sessions}
        asked: list[tuple[list[int], list[int]]] = []
        for name in sessions:
            opened = {"capacity_of_str_len": 10_000, "session_id": name, "streaming": True}
            server.post("/open_session", opened)
        cached = prompt_tokens = 0
        for turn in range(TURNS):
            for name, turns in sessions.items():
                answer = ask(server, name, turns[turn])
                meta = answer["meta_info"]
                prompt = histories[name] + turns[turn]
                assert meta["prompt_tokens"] == len(prompt)
                # The token that was generated last has no KV yet.
                assert meta["cached_tokens"] == max(len(histories[name]) - 1, 0)
                cached += meta["cached_tokens"]
                prompt_tokens += len(prompt)
                asked.append((prompt, answer["output_ids"]))
                histories[name] = prompt + answer["output_ids"]
            share = others[turn * 6 : (turn + 1) * 6]
            cached += outputs(server, share, TOKENS)[1]
            prompt_tokens += sum(map(len, share))
        after = marconi_state(server)
        grown = {name: after[name] - before[name] for name in ("requests", "hit_tokens")}
        assert grown == {"requests": TURNS * (3 + 6), "hit_tokens": cached}
        assert after["input_tokens"] - before["input_tokens"] == prompt_tokens
        assert after["states_evicted"] > before["states_evicted"]
        for name in sessions:
            server.post("/close_session", {"session_id": name})
        for prompt, answer in asked[:: len(asked) // 5]:
            server.flush_cache()
            assert outputs(server, [prompt], TOKENS) == ([answer], 0)
        server.flush_cache()
        assert marconi_state(server)["errors"] == 0 and "leak" not in server.log().lower()
        # After those of the server's own warm-up.
        warm_up = before["requests"]
        recorded = recorded_lines(recording, warm_up + 3 + len(others))[warm_up:]
    # Of a session the first turn: the others look nothing up in the tree.
    first_turns = [len(turns[0]) for turns in sessions.values()]
    assert [line["input_length"] for line in recorded[:3]] == first_turns
    assert len(recorded) >= 3 + len(others)
