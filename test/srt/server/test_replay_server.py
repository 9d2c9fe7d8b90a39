"""A real server under replay: the simulator predicts its hits, and prompts repeat its replies."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from lab.spec import HostSpec
from live import against_lab as lab_against_life
from live import replay
from live.history import TokenSource
from live.lab_side import ServerShape
from live.run import Sent
from live.server_api import flush_cache, marconi_counters
from live.under_load import Loop, compare_loaded
from live.workload import Selection
from server_harness import launch_server, tiny_model
from traces import Request

pytestmark = pytest.mark.server

BLOCK = 16
SHAPE = ServerShape(kv_tokens=2048, states=12, chunked_prefill=512)


def made_trace(seed: int, sessions: int = 8, requests: int = 70) -> list[Request]:
    """Growing conversations under shared system prompts, with edits, repeats and new starts."""
    rng = random.Random(seed)
    fresh = iter(range(1000, 1 << 30))
    system = [next(fresh) for _ in range(12)]
    ids: list[list[int]] = [system[: rng.choice((0, 5, 12))] for _ in range(sessions)]
    lengths = [len(blocks) * BLOCK for blocks in ids]

    def grow(session: int, tokens: int) -> tuple[int, ...]:
        lengths[session] += tokens
        new = [next(fresh) for _ in range(lengths[session] // BLOCK - len(ids[session]))]
        ids[session] += new
        return tuple(new)

    trace = []
    for at in range(requests):
        session, kind = rng.randrange(sessions), rng.random()
        if lengths[session] > 1000 or kind < 0.05:
            ids[session] = system[: rng.choice((0, 5, 12))]
            lengths[session] = len(ids[session]) * BLOCK
        elif kind < 0.12 and len(ids[session]) > 8:
            ids[session] = ids[session][: rng.randrange(4, len(ids[session]))]
            lengths[session] = len(ids[session]) * BLOCK
        if kind < 0.95 or lengths[session] == 0:
            grow(session, rng.choice((1, 3, 20, 64, 100, 200, 400)))
        length, prompt = lengths[session], tuple(ids[session])
        output = rng.choice((1, 1, 2, 4, 8, 16, 70))
        trace.append(
            Request(50.0 * at, f"s{session}", length, output, prompt, grow(session, output))
        )
    return trace


def agents(sessions: int, turns: int) -> list[Request]:
    """Sessions that grow by observations; answers of one length, so that time decides little."""
    rng, fresh = random.Random(4), iter(range(1000, 1 << 30))
    system = [next(fresh) for _ in range(8)]
    trace = []
    for session in range(sessions):
        ids = list(system)
        for turn in range(turns):
            ids += [next(fresh) for _ in range(rng.randrange(4, 24))]
            length = len(ids) * BLOCK
            trace.append(Request(50.0 * turn, f"s{session}", length, 8, tuple(ids), ()))
    return trace


@pytest.mark.parametrize(
    ("policy", "host"),
    [("lru", None), ("lru", HostSpec(2, "write_back")), ("server:2:0.5", None)],
    ids=["lru", "lru above a host tier", "policy 2"],
)
def test_the_simulator_hits_what_the_server_hits(policy, host, tmp_path, capsys):
    """Request by request, both pools evicting; on the same server the command line follows."""
    shape = replace(SHAPE, host=host)
    turns = Selection(block=BLOCK).turns(made_trace(1))
    model = tiny_model("qwen3-next")
    flags = lab_against_life.server_arguments(policy, shape)
    with launch_server(model, *flags) as server:
        url = server.base_url
        flush_cache(url)
        before = marconi_counters(url)
        source = TokenSource(BLOCK, vocab_size=256)
        sent = lab_against_life.play(url, turns, source, lambda: None)
        after = marconi_counters(url)
        result = lab_against_life.agreement(policy, sent, before, after, shape, model)
        assert result.agrees, lab_against_life.report(result)
        assert result.compared == len(turns) and result.cached_tokens[0] > 5000
        if policy != "lru":
            assert result.victims is not None
            assert {kind.partition(":")[0] for kind in result.victims[0]} == {"kv", "state"}
            assert_prompts_repeat_replies(sent)
            replay_by_command_line(url, tmp_path, capsys)


def test_the_simulator_hits_what_a_server_under_load_hits():
    """A queue in order of arrival, chunks that prompts share, both pools evicting."""
    shape, loop = ServerShape(6000, 24, chunked_prefill=512), Loop(12, 2, "fcfs")
    model = tiny_model("qwen3-next")
    turns = Selection(block=BLOCK).turns(agents(24, turns=5))
    for _ in range(3):
        compared = compare_loaded(
            *("lru", lab_against_life.server_arguments("lru", shape), turns),
            *(TokenSource(BLOCK, vocab_size=256), shape, loop, model),
            *(lab_against_life.model_cost(model), 0, lambda: None),
        )
        assert compared.life > 10 and compared.requests == 120
        # Of requests that come at once, the server may see another first.
        if compared.differing <= 6:
            return
    pytest.fail(str(compared))


def test_bytes_are_those_of_the_type_that_the_server_runs(tmp_path):
    config = json.loads((tiny_model("qwen3-next", "float32") / "config.json").read_text())
    of = {}
    for dtype in ("float32", "bfloat16"):
        (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
        of[dtype] = lab_against_life.model_cost(tmp_path)
    assert of["float32"].kv_bytes_per_token == 2 * of["bfloat16"].kv_bytes_per_token
    assert of["float32"].state_bytes > of["bfloat16"].state_bytes
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "int3"}))
    with pytest.raises(ValueError, match=r"dtype 'int3'; allowed are float32"):
        lab_against_life.model_cost(tmp_path)


@pytest.mark.parametrize(
    ("words", "named"),
    [(["0"], "--host-share is 0"), (["nan"], "is nan"), (["2", "--active", "3"], "with --active")],
)
def test_a_host_tier_that_cannot_be_compared_is_refused(words, named, capsys):
    arguments = ["--trace", "unread", "--model", "unread", "--host-share", *words]
    assert lab_against_life.main(arguments) == 1
    assert named in capsys.readouterr().err


def assert_prompts_repeat_replies(sent: list[Sent]) -> None:
    by_session: dict[str, list[Sent]] = {}
    for one in sent:
        by_session.setdefault(one.turn.session, []).append(one)
    extended = 0
    for turns in by_session.values():
        for earlier, later in pairwise(turns):
            assert earlier.answer is not None
            history = earlier.prompt + earlier.answer.tokens
            if later.turn.request.prompt_ids[: len(history) // BLOCK] == (
                earlier.turn.request.prompt_ids + earlier.turn.request.output_ids
            ) and len(later.prompt) >= len(history):
                assert later.prompt[: len(history)] == history
                extended += 1
    assert extended > 20


def replay_by_command_line(url: str, tmp_path, capsys) -> None:
    """Both interfaces, open and closed loop, from a file to rows and a table."""
    path, out, each = (tmp_path / name for name in ("trace.jsonl", "rows.jsonl", "each.jsonl"))
    with path.open("w") as lines:
        for request in made_trace(2, requests=14):
            record = {
                **{"timestamp": request.timestamp_ms, "session_id": request.session},
                **{"input_length": request.input_length, "output_length": request.output_length},
                **{"hash_ids": request.prompt_ids, "output_hash_ids": request.output_ids},
            }
            lines.write(json.dumps(record) + "\n")
    common = ["--trace", str(path), "--block", "16", "--ignore-eos", "--flush-cache"]
    common += ["--url", url, "--warm-up", "4", "--out", str(out), "--per-request", str(each)]
    assert replay.main(common) == 0
    openai = ["--api", "completions", "--speed", "2", "--label", "again"]
    assert replay.main([*common, *openai]) == 0
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert (first["answered"], first["failed"], second["answered"]) == (10, 0, 10)
    assert first["input_tokens"] == second["input_tokens"] > 0
    assert first["marconi"]["requests"] == second["marconi"]["requests"] == 10
    assert first["marconi"]["hit_tokens"] == first["cached_tokens"]
    # Without --enable-cache-report OpenAI's interface does not tell.
    assert second["token_hit_rate"] is None and second["server"] == "again"
    assert len(each.read_text().splitlines()) == 20
    assert "TTFT P99, ms" in capsys.readouterr().out

    too_long = tmp_path / "long.jsonl"
    with too_long.open("w") as lines:
        for at, (session, length) in enumerate((("a", 64 * 140), ("b", 9))):
            record = {"timestamp": at, "session_id": session, "input_length": length}
            record |= {"output_length": 2, "hash_ids": list(range(length // 64))}
            lines.write(json.dumps(record) + "\n")
    assert replay.main(["--trace", str(too_long), "--url", url, "--out", str(out)]) == 0
    row = json.loads(out.read_text().splitlines()[-1])
    assert (row["answered"], row["failed"]) == (1, 1) and len(row["errors"]) == 1
