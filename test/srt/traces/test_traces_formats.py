"""Readers of every trace format, on files made by code."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import Request, TraceError, read_trace
from traces.hashing import block_ids, token_request
from traces_harness import TEMPLATE, save_byte_tokenizer

TOKENS = st.lists(st.integers(0, 3), max_size=24)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    return save_byte_tokenizer(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def templated(tmp_path_factory) -> str:
    return save_byte_tokenizer(tmp_path_factory.mktemp("templated"), TEMPLATE)


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@given(TOKENS, TOKENS, st.integers(1, 5))
def test_ids_are_equal_exactly_as_far_as_tokens_are(left, right, block):
    shared = 0
    while left[: (shared + 1) * block] == right[: (shared + 1) * block] and (
        (shared + 1) * block <= min(len(left), len(right))
    ):
        shared += 1
    a, b = block_ids(left, block), block_ids(right, block)
    assert (len(a), len(b)) == (len(left) // block, len(right) // block)
    assert a[:shared] == b[:shared]
    assert not set(a[shared:]) & set(b[shared:])


def test_ids_do_not_change_between_versions():
    assert block_ids([1, 2, 3, 4, 5], 2) == [1581624067414295539, 996829258372456865]


@given(TOKENS.filter(bool), TOKENS)
def test_an_output_continues_its_prompt(prompt, output):
    request = token_request(0.0, None, prompt, output, 4)
    longer = token_request(0.0, None, prompt + output, [], 4)
    assert request.prompt_ids + request.output_ids == longer.prompt_ids
    assert request.input_tokens == tuple(prompt) and request.output_tokens == tuple(output)


def test_mooncake_is_found_and_its_partial_block_left_out(tmp_path):
    path = write(
        tmp_path / "m.jsonl",
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 9, "input_length": 1024, "output_length": 5, "hash_ids": [0, 1]},
    )
    reader = read_trace(path)
    assert (reader.format, reader.block) == ("mooncake", 512)
    assert [request.prompt_ids for request in reader] == [(0, 1), (0, 1)]


def turn(at: int, length: int, output: int, ids: range | list[int], **more: object) -> dict:
    record = {"timestamp": at, "session_id": "s", "input_length": length}
    return record | {"output_length": output, "hash_ids": list(ids)} | more


def test_hidden_outputs_are_those_that_the_next_prompt_repeats(tmp_path):
    path = write(
        tmp_path / "t.jsonl",
        turn(0, 130, 200, range(2)),
        turn(1, 100, 100, [50], session_id="another"),
        turn(2, 400, 100, range(6)),  # extends the first
        turn(3, 450, 500, range(7)),  # too short to hold the answer before it
        turn(4, 6400, 10, [*range(6), *range(100, 194)]),  # diverges within the prompt before it
    )
    revealed = [request.output_ids for request in read_trace(path)]
    assert revealed == [(2, 3, 4), (), (), (), ()]
    assert all(not r.output_ids for r in read_trace(path, reveal_outputs=False))
    # A limit hides what comes after it.
    assert [r.output_ids for r in read_trace(path, limit=1)] == [()]
    # Outputs that the trace names are believed.
    named = write(
        tmp_path / "n.jsonl", turn(0, 64, 64, [1], output_hash_ids=[9]), turn(1, 640, 0, range(10))
    )
    assert [r.output_ids for r in read_trace(named, reveal_outputs=True)] == [(9,), ()]


def test_marconi_lines_have_tokens(tmp_path):
    record = {
        "session_id": 7,
        "turn_id": 0,
        "ts": 1.5,
        "num_input_tokens": 3,
        "num_output_tokens": 2,
        "input_tokens": [1, 2, 3],
        "output_tokens": [4, 5],
    }
    path = write(tmp_path / "t.jsonl", record, record | {"num_input_tokens": 4})
    errors: list[TraceError] = []
    reader = read_trace(path, block=2, on_error=errors.append)
    assert reader.format == "marconi"
    assert list(reader) == [token_request(1500.0, "7", (1, 2, 3), (4, 5), 2)]
    assert [str(e) for e in errors] == [
        f"{path}, line 2: num_input_tokens is 4, but 3 tokens follow"
    ]


CONVERSATIONS = [
    {
        "id": f"c{index}",
        "conversations": [
            {"from": "human", "value": f"question {index} " * 12},
            {"from": "gpt", "value": 'an {"answer"} ' * 9},
            {"from": "human", "value": "and then?"},
            {"from": "gpt", "value": "the end"},
        ],
    }
    for index in range(5)
]


@pytest.mark.parametrize("layout", ["list", "pretty", "lines"])
@pytest.mark.parametrize("kind", ["plain", "templated"])
def test_sharegpt_turns_extend_their_history(tmp_path, request, kind, layout):
    tokenizer = request.getfixturevalue(kind)
    path = tmp_path / "s.json"
    if layout == "lines":
        write(path, *CONVERSATIONS)
    else:
        path.write_text(json.dumps(CONVERSATIONS, indent=2 if layout == "pretty" else None))
    reader = read_trace(path, tokenizer=tokenizer, block=16)
    requests = list(reader)
    assert reader.format == "sharegpt" and reader.skipped == 0
    assert sorted(r.session or "" for r in requests) == sorted([f"c{i}" for i in range(5)] * 2)
    assert [r.timestamp_ms for r in requests] == sorted(r.timestamp_ms for r in requests)
    for session in range(5):
        first, second = (r for r in requests if r.session == f"c{session}")
        held = (*first.input_tokens, *first.output_tokens)
        assert second.input_tokens[: len(held)] == held
        assert second.prompt_ids[: len(held) // 16] == first.prompt_ids + first.output_ids
        # 10 words before the second prompt take more than 1 s at 90 words a minute.
        assert second.timestamp_ms - first.timestamp_ms > 1000
    assert requests == list(read_trace(path, tokenizer=tokenizer, block=16))


def test_a_format_of_text_needs_a_tokenizer(tmp_path):
    path = write(tmp_path / "s.json", *CONVERSATIONS)
    with pytest.raises(TraceError, match="sharegpt holds text and needs --tokenizer"):
        read_trace(path)


def messages(*texts: str) -> list[dict]:
    return [
        {"role": "assistant" if index % 2 else "user", "content": text}
        for index, text in enumerate(texts)
    ]


def test_swe_agent_calls_are_the_queries(tmp_path, templated):
    step = {"action": "ls", "observation": "x", "thought": "", "execution_time": 2.5}
    steps = [
        step | {"query": messages("task"), "response": "ls"},
        step | {"query": messages("task", "ls", "files"), "response": "cat"},
        step | {"query": [{}], "response": ""},
    ]
    (tmp_path / "a.traj").write_text(json.dumps({"trajectory": steps, "history": []}, indent=1))
    first, second = read_trace(tmp_path / "a.traj", tokenizer=templated)
    assert (first.session, second.session) == ("a:1", "a:1")
    assert second.input_tokens[: first.input_length] == first.input_tokens
    assert second.timestamp_ms - first.timestamp_ms >= 2500
    # Of two files in a folder each is a session.
    (tmp_path / "b.traj").write_text(json.dumps({"trajectory": steps}))
    reader = read_trace(tmp_path, tokenizer=templated)
    assert sorted(r.session or "" for r in reader) == ["a:1", "a:1", "b:1", "b:1"]


def test_swe_agent_without_queries_gives_the_history(tmp_path, plain):
    history = messages("demo", "shown", "task", "ls", "files", "cat")
    history[1]["is_demo"] = True
    (tmp_path / "a.traj").write_text(json.dumps({"trajectory": [], "history": history}))
    first, second = read_trace(tmp_path / "a.traj", tokenizer=plain)
    assert len(second.input_tokens) > len(first.input_tokens) > len("demo shown task")
    mini = tmp_path / "b.traj.json"
    mini.write_text(json.dumps({"trajectory_format": "mini-swe-agent-1", "messages": history[2:]}))
    assert len(list(read_trace(mini, tokenizer=plain))) == 2


def test_openai_logs_in_their_usual_shapes(tmp_path, templated):
    answer = {"choices": [{"message": {"role": "assistant", "content": "yes"}}]}
    asked = {"messages": messages("a")}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]
    path = write(
        tmp_path / "o.jsonl",
        asked | {"response": answer, "timestamp": 100.5, "session_id": "s"},
        {
            "request": {"messages": messages("a"), "user": "u"},
            "response": answer | {"created": 101},
        },
        {"body": {"messages": parts}, "response": {"body": answer}, "timestamp": 102},
        {
            "messages": messages("a"),
            "choices": [{"message": call}],
            "timestamp": "1970-01-01T00:01:43",
        },
        asked | {"timestamp": 104_000_000_000},
        {"messages": [], "timestamp": 105},
    )
    errors: list[TraceError] = []
    reader = read_trace(path, tokenizer=templated, on_error=errors.append)
    requests = list(reader)
    assert reader.format == "openai"
    assert [r.timestamp_ms for r in requests] == [100_500, 101_000, 102_000, 103_000, 104e9]
    assert [r.session for r in requests] == ["s", "u", None, None, None]
    assert len({r.input_tokens for r in requests}) == 1
    # The three letters and the end of turn; a tool call counts as its JSON text.
    assert [r.output_length for r in requests] == [4, 4, 4, len('[{"id": "1"}]') + 1, 0]
    assert [str(e) for e in errors] == [f"{path}, line 6: messages are missing, empty or no list"]


def log_lines(folder: Path, level: int, calls: list[tuple[dict, dict]]) -> Path:
    """What SGLang's own request logger writes of these requests and answers."""
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.utils.request_logger import RequestLogger

    logger = RequestLogger(True, level, "json", [str(folder)])
    for asked, out in calls:
        request = GenerateReqInput(**asked)
        logger.log_received_request(request)
        logger.log_finished_request(request, out)
    for target in logger.targets:
        for handler in list(target.handlers):
            handler.close()
            target.removeHandler(handler)
            assert isinstance(handler, logging.FileHandler)
    (path,) = folder.iterdir()
    return path


def test_sglang_request_logs(tmp_path, plain):
    start = datetime(2026, 1, 1).timestamp()
    ids = list(range(5000))

    def out(prompt: int, at: float, **more: object) -> dict:
        meta = {"prompt_tokens": prompt, "completion_tokens": 2, "e2e_latency": 0.5}
        return {"text": "ok", "meta_info": meta | {"request_received_ts": start + at}, **more}

    calls = [
        ({"input_ids": ids, "rid": "a", "session_id": "s"}, out(5000, 1.0, output_ids=[1, 2])),
        ({"text": "hello", "rid": "b"}, out(5, 0.0)),
    ]
    path = log_lines(tmp_path / "three", 3, calls)
    path.write_text(f"[2026-01-01 00:00:00] a line of the server\n{path.read_text()}")
    reader = read_trace(path, tokenizer=plain)
    text, tokens = reader
    assert reader.format == "sglang" and reader.skipped == reader.out_of_order == 0
    assert tokens == token_request((start + 1) * 1000, "s", ids, [1, 2], 64)
    assert (text.timestamp_ms, text.input_length, text.output_length) == (start * 1000, 5, 2)
    errors: list[TraceError] = []
    assert list(read_trace(log_lines(tmp_path / "two", 2, calls), on_error=errors.append)) == []
    assert "input_ids was cut by the log" in str(errors[0])
    assert "--tokenizer is needed" in str(errors[1])
    errors.clear()
    assert list(read_trace(log_lines(tmp_path / "one", 1, calls), on_error=errors.append)) == []
    assert all("use --log-requests-level 3" in str(error) for error in errors)


def test_an_unknown_format_is_named(tmp_path):
    path = write(tmp_path / "x.jsonl", {"a": 1})
    with pytest.raises(TraceError, match="no format recognises"):
        read_trace(path)
    with pytest.raises(TraceError, match=r"--format is 'best'; allowed are auto, .*openai"):
        read_trace(path, format="best")
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "absent.jsonl")


def test_a_request_needs_no_tokens():
    assert Request(0.0, None, 1, 0, (), ()).input_tokens is None
